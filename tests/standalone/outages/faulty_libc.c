// Loaded ahead of libc by tests/standalone/outages.rs: calls that a bad machine answers otherwise, each as long as a file
// of that name is in the folder FAULTS.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_on(const char *fault) {
    const char *folder = getenv("FAULTS");
    char file[PATH_MAX];
    snprintf(file, sizeof file, "%s/%s", folder ? folder : "", fault);
    return folder && access(file, F_OK) == 0;
}

static void wait_for_the_disk(void) {
    while (is_on("sync-hangs"))
        usleep(10 * 1000);
}

int fsync(int file) {
    wait_for_the_disk();
    return syscall(SYS_fsync, file);
}

int fdatasync(int file) {
    wait_for_the_disk();
    return syscall(SYS_fdatasync, file);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    return is_on("no-threads") ? EAGAIN : real(thread, attributes, start, argument);
}

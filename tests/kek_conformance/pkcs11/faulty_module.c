/* A PKCS#11 module that passes everything on to a real one, but for the fault that a file names. */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong;
struct attribute { ulong type; void *value; ulong length; };
/* CK_FUNCTION_LIST: a version, then 68 functions in the order of the standard. */
struct functions { unsigned char major, minor; void *of[68]; };
enum { INITIALIZE = 0, GET_FUNCTION_LIST = 3, GET_ATTRIBUTE_VALUE = 24, ENCRYPT = 30 };
enum { CHECK_VALUE = 0x90, ATTRIBUTE_TYPE_INVALID = 0x12, GENERAL_ERROR = 5 };

static struct functions ours, *real;

static int fault(const char *name) {
    char text[64] = "";
    FILE *file = fopen(getenv("MODULE_FAULT_FILE"), "r");
    if (file) {
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
    }
    return strcmp(text, name) == 0;
}

static ulong initialize(void *arguments) {
    while (fault("hang-at-start")) pause();
    return ((ulong (*)(void *))real->of[INITIALIZE])(arguments);
}

static ulong encrypt(ulong session, void *data, ulong length, void *out, ulong *out_length) {
    if (fault("crash-at-encrypt")) raise(SIGSEGV);
    while (fault("hang-at-encrypt")) usleep(10000);
    return ((ulong (*)(ulong, void *, ulong, void *, ulong *))real->of[ENCRYPT])(session, data, length, out, out_length);
}

static ulong get_attribute_value(ulong session, ulong object, struct attribute *template, ulong count) {
    ulong result = ((ulong (*)(ulong, ulong, struct attribute *, ulong))real->of[GET_ATTRIBUTE_VALUE])(
        session, object, template, count);
    if (fault("no-check-value"))
        for (ulong i = 0; i < count; i++)
            if (template[i].type == CHECK_VALUE) {
                template[i].length = (ulong)-1;
                result = ATTRIBUTE_TYPE_INVALID;
            }
    return result;
}

ulong C_GetFunctionList(struct functions **list) {
    if (!real) {
        void *library = dlopen(getenv("MODULE_FAULT_REAL"), RTLD_NOW);
        if (!library) return GENERAL_ERROR;
        ulong (*get)(struct functions **) = (ulong (*)(struct functions **))dlsym(library, "C_GetFunctionList");
        if (!get || get(&real)) return GENERAL_ERROR;
        ours = *real;
        ours.of[INITIALIZE] = initialize;
        ours.of[GET_FUNCTION_LIST] = C_GetFunctionList;
        ours.of[GET_ATTRIBUTE_VALUE] = get_attribute_value;
        ours.of[ENCRYPT] = encrypt;
    }
    *list = &ours;
    return 0;
}

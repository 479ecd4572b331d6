//! The ways to rewrite, each as a process of its own, and what it costs everybody.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kube::Api;
use kube::api::PostParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{from_value, json};

use super::control_plane::ControlPlane;
use super::support::{ADMIN, server};

/// One way to rewrite.
#[derive(Clone, Copy)]
pub enum Method {
    /// `PATCH {}` of each object, so many in flight.
    Bare(usize),
    /// `kube-envelope rotate-keys` from the plan to the verdict: as it is, or told the target and how much at once.
    RotateKeys(Told),
    /// `kubectl get -o json | kubectl replace -f -`
    Replace,
    /// A StorageVersionMigration, worked off by kube-controller-manager.
    Migration,
}

/// What `rotate-keys` is told beside what it needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Nothing,
    Target,
    TargetAndConcurrency(usize),
    /// To rewrap in etcd, and the plugin's configuration.
    Rewrap,
}

/// The first one is the limit that others are compared with.
pub const METHODS: [Method; 8] = [
    Method::Bare(32),
    Method::Bare(64),
    Method::RotateKeys(Told::TargetAndConcurrency(32)),
    Method::RotateKeys(Told::Target),
    Method::RotateKeys(Told::Nothing),
    Method::RotateKeys(Told::Rewrap),
    Method::Replace,
    Method::Migration,
];

/// What one run took.
#[derive(Clone, Copy)]
pub struct Figures {
    pub seconds: f64,
    /// Of them, for what the bare loop does; the rest waits and proves. Only where it can be told apart.
    pub rewrite_seconds: f64,
    pub api_server_cpu: f64,
    pub etcd_cpu: f64,
    pub own_cpu: f64,
    pub own_mebibytes: f64,
}

impl Method {
    pub fn name(self) -> String {
        match self {
            Self::Bare(in_flight) => format!("bare loop of PATCH, {in_flight} in flight"),
            Self::RotateKeys(Told::Nothing) => "rotate-keys".into(),
            Self::RotateKeys(Told::Target) => "rotate-keys --key-id".into(),
            Self::RotateKeys(Told::Rewrap) => "rotate-keys --method rewrap --config".into(),
            Self::RotateKeys(Told::TargetAndConcurrency(most)) => {
                format!("rotate-keys --key-id --max-concurrency {most}")
            }
            Self::Replace => "kubectl get, kubectl replace".into(),
            Self::Migration => "StorageVersionMigration".into(),
        }
    }

    /// Rewrites everything under this key_id, the one in use.
    pub async fn run(self, control_plane: &ControlPlane, target: &str) -> Figures {
        let servers = [control_plane.api_server.process.id(), control_plane.etcd.process.id()];
        let before = servers.map(cpu);
        let started = Instant::now();
        let mut rewrite_seconds = f64::NAN;
        let (own_cpu, own_mebibytes) = match self {
            Self::Bare(in_flight) => {
                let mut bare = Command::new(std::env::current_exe().unwrap());
                bare.args(["bare", &control_plane.api_server.url(), ADMIN, &in_flight.to_string()]);
                watch(vec![bare.spawn().unwrap()]).await
            }
            Self::RotateKeys(told) => {
                let mut child = rotate_keys(control_plane, told, target).spawn().unwrap();
                let phases = Phases::watch(child.stderr.take().unwrap());
                let own = watch(vec![child]).await;
                rewrite_seconds = phases.between("rewrite", "verify");
                own
            }
            Self::Replace => watch(replace(control_plane)).await,
            Self::Migration => migrate(control_plane).await,
        };
        let seconds = started.elapsed().as_secs_f64();
        let after = servers.map(cpu);
        let [api_server_cpu, etcd_cpu] = [after[0] - before[0], after[1] - before[1]];
        Figures { seconds, rewrite_seconds, api_server_cpu, etcd_cpu, own_cpu, own_mebibytes }
    }
}

fn rotate_keys(control_plane: &ControlPlane, told: Told, target: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-envelope"));
    let journal = control_plane.new_journal();
    command.arg("rotate-keys").arg("--kubeconfig").arg(&control_plane.kubeconfig);
    command.arg("--encryption-config").arg(control_plane.api_server.encryption_file());
    command.arg("--etcd").arg(control_plane.etcd.url()).arg("--journal").arg(journal);
    // Waiting is not what is measured.
    command.arg("--settle=0s");
    match told {
        Told::Nothing => {}
        Told::Target | Told::TargetAndConcurrency(_) => {
            command.arg(format!("--key-id={target}"));
        }
        Told::Rewrap => {
            command.args(["--method=rewrap", "--snapshot-command=true"]);
            command.arg("--config").arg(control_plane.plugin.config_file());
        }
    }
    if let Told::TargetAndConcurrency(most) = told {
        command.arg(format!("--max-concurrency={most}"));
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// When `rotate-keys` said that it enters a state.
struct Phases(JoinHandle<Vec<(String, Instant)>>);

impl Phases {
    fn watch(output: ChildStderr) -> Self {
        Self(std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            let mut entered = Vec::new();
            for line in lines {
                match line.strip_prefix("state: ") {
                    Some(state) => entered.push((state.to_owned(), Instant::now())),
                    None => eprintln!("{line}"),
                }
            }
            entered
        }))
    }

    fn between(self, first: &str, last: &str) -> f64 {
        let entered = self.0.join().unwrap();
        let at = |state: &str| entered.iter().find(|(name, _)| name == state).unwrap().1;
        at(last).duration_since(at(first)).as_secs_f64()
    }
}

fn replace(control_plane: &ControlPlane) -> Vec<Child> {
    let kubectl = |verb: &[&str]| {
        let mut command = Command::new(server("kubectl"));
        command.arg(format!("--kubeconfig={}", control_plane.kubeconfig.display())).args(verb);
        command
    };
    let mut get = kubectl(&["get", "secrets", "--all-namespaces", "--output=json"]);
    let mut get = get.stdout(Stdio::piped()).spawn().unwrap();
    let mut replace = kubectl(&["replace", "--filename=-"]);
    let replace = replace.stdin(get.stdout.take().unwrap()).stdout(Stdio::null()).spawn().unwrap();
    vec![get, replace]
}

/// Waits for the processes: their CPU time in seconds, and their greatest memory in MiB, taken together.
async fn watch(mut children: Vec<Child>) -> (f64, f64) {
    let before = children_cpu();
    let mut greatest = vec![0.0; children.len()];
    while !children.is_empty() {
        for (child, greatest) in children.iter().zip(&mut greatest) {
            *greatest = f64::max(*greatest, peak(child.id()));
        }
        let mut running = Vec::new();
        for mut child in children {
            match child.try_wait().unwrap() {
                Some(status) => assert!(status.success(), "{status}"),
                None => running.push(child),
            }
        }
        children = running;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (children_cpu() - before, greatest.iter().sum())
}

/// The controller begins once its garbage collector's cache is newer than the migration. On a cluster as quiet as this
/// one that takes minutes, so a Secret is written every second meanwhile, as elsewhere others do.
async fn migrate(control_plane: &ControlPlane) -> (f64, f64) {
    let manager = control_plane.controller_manager.id();
    let before = cpu(manager);
    let kind = GroupVersionKind::gvk("storagemigration.k8s.io", "v1", "StorageVersionMigration");
    let migrations: Api<DynamicObject> =
        Api::all_with(control_plane.api_server.client(), &ApiResource::from_gvk(&kind));
    let migration = json!({
        "apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration",
        "metadata": {"generateName": "secrets-"}, "spec": {"resource": {"group": "", "resource": "secrets"}},
    });
    let migration = migrations.create(&PostParams::default(), &from_value(migration).unwrap()).await.unwrap();
    let name = migration.metadata.name.unwrap();
    for look in 0.. {
        if look % 10 == 0 {
            control_plane.touch(&format!("{name}-{look}")).await;
        }
        let migration = migrations.get(&name).await.unwrap();
        let conditions = migration.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is =
            |kind: &str| conditions.iter().any(|condition| condition["type"] == kind && condition["status"] == "True");
        assert!(!is("Failed"), "{conditions:?}");
        if is("Succeeded") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (cpu(manager) - before, peak(manager))
}

/// CPU time of a process in seconds.
fn cpu(process: u32) -> f64 {
    ticks(&process.to_string(), 11)
}

/// CPU time of this process's children that have ended, in seconds.
fn children_cpu() -> f64 {
    ticks("self", 13)
}

/// User and system time of /proc/PID/stat, from its field `first` behind the name; Linux counts 100 ticks a second.
fn ticks(process: &str, first: usize) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[first..first + 2].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// The greatest resident memory so far, in MiB; 0 once the process has ended.
fn peak(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.map_or(0.0, |line| line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0)
}

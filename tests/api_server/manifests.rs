//! `manifests/` against the program's own defaults and command line, and against a real kube-apiserver.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, Process, free_port};
use clap::Parser;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube_envelope::cli::{Cli, Command};
use kube_envelope::config::{Config, DEFAULT_LISTEN, DEFAULT_PATH, DEFAULT_SOCKET, DEFAULT_STATE_DIR};
use kube_envelope::key_stores::keyring::Keyring;
use serde_json::{Value, from_value, json};

#[test]
fn the_example_configuration_shows_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let text = manifest("config.yaml").replace("/etc/kube-envelope", folder.path().to_str().unwrap());
    Keyring::create(&mut rand::rng()).write_new(&folder.path().join("keyring.json")).unwrap();

    let parse = |text: &str| Config::parse(Path::new("config.yaml"), text).unwrap_or_else(|error| panic!("{error}"));
    let config = parse(&text);
    assert_eq!(config.socket.address.file(), Some(Path::new(DEFAULT_SOCKET)));

    let (uncommented, count) = uncomment(&text);
    assert_eq!(count, 12, "each default is shown");
    assert_eq!(format!("{:?}", parse(&uncommented)), format!("{config:?}"));
}

#[test]
fn the_static_pod_serves_at_the_default_places() {
    let pod = yaml(&manifest("static-pod.yaml"));
    let spec = &pod["spec"];
    let container = &spec["containers"][0];
    assert_serves(&[strings(&container["command"]), strings(&container["args"])].concat());

    for (folder, read_only) in
        [(parent(DEFAULT_PATH), true), (parent(DEFAULT_SOCKET), false), (DEFAULT_STATE_DIR, false)]
    {
        let mount = find(&container["volumeMounts"], "mountPath", folder);
        assert_eq!(mount["readOnly"] == true, read_only, "{folder}");
        let volume = find(&spec["volumes"], "name", mount["name"].as_str().unwrap());
        assert_eq!(volume["hostPath"]["path"], folder);
    }
    let health: SocketAddr = DEFAULT_LISTEN.parse().unwrap();
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get, &json!({"host": health.ip(), "port": health.port(), "path": path}), "{probe}");
    }
    let security = &container["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"], "add": ["IPC_LOCK"]}));
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    assert_eq!(pod["metadata"]["namespace"], "kube-system");
    assert_eq!(spec["hostNetwork"], true, "the probes ask the node's own loopback");
    for forbidden in ["secret", "configMap", "serviceAccountName", "projected"] {
        assert!(!has_key(&pod, forbidden), "the kubelet refuses a static pod with {forbidden}");
    }
}

#[test]
fn the_systemd_unit_serves_at_the_default_places() {
    let unit = manifest("kube-envelope.service");
    let values = |key: &str| unit.lines().filter_map(|line| line.strip_prefix(&format!("{key}="))).collect::<Vec<_>>();
    assert_serves(&values("ExecStart")[0].split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    for (base, directory, default) in [
        ("/run", "RuntimeDirectory", parent(DEFAULT_SOCKET)),
        ("/var/lib", "StateDirectory", DEFAULT_STATE_DIR),
        ("/etc", "ConfigurationDirectory", parent(DEFAULT_PATH)),
    ] {
        assert_eq!(values(directory), [default.strip_prefix(base).unwrap().trim_start_matches('/')]);
        assert_eq!(values(&format!("{directory}Mode")), ["0700"]);
    }
    for (key, value) in [
        ("Type", "notify"),
        ("Before", "kubelet.service kube-apiserver.service k3s.service rke2-server.service"),
        ("LimitMEMLOCK", "infinity"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("LogsDirectory", "kube-envelope"),
        ("LogsDirectoryMode", "0700"),
        ("DevicePolicy", "closed"),
    ] {
        assert_eq!(values(key), [value], "{key}");
    }
}

/// docs/keks/pkcs11.md sends USB tokens and the TPM through these lines; the refresh loop may stand still for five
/// minutes before systemd is not told any more that the plugin is alive.
#[test]
fn the_systemd_unit_lets_tokens_through_and_has_a_watchdog() {
    let unit = manifest("kube-envelope.service");
    for line in ["DeviceAllow=char-usb_device rw", "DeviceAllow=/dev/tpmrm0 rw", "WatchdogSec=60"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    assert!(!unit.contains("\nPrivateDevices="), "it would hide the devices");
    // What the plugin calls to restrict itself, and to give its socket to a group, is in neither set (systemd 252); a line
    // that removes calls takes away what came before it.
    let filters: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")).collect();
    let after =
        filters.iter().skip_while(|filter| !filter.starts_with('~')).skip(1).copied().collect::<Vec<_>>().join(" ");
    for call in
        ["@chown", "capset", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp"]
    {
        assert!(after.split(' ').any(|word| word == call), "{call}: {filters:?}");
    }
    let families = unit.lines().find(|line| line.starts_with("RestrictAddressFamilies=")).unwrap();
    for family in ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"] {
        assert!(families.split([' ', '=']).any(|word| word == family), "{family}: {families}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_that_the_plugin_is_ready() {
    crate::support::prepare();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify.sock");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(crate::support::STARTS_WITHIN)).unwrap();
    let kms = folder.path().join("kms.sock");
    let _plugin = serve(folder.path(), &kms, vec![("NOTIFY_SOCKET".into(), socket.into())]);

    // What it stores may be told before.
    let mut message = [0; 256];
    while !message.starts_with(b"READY=1") {
        systemd.recv(&mut message).unwrap();
    }
    let mut client =
        crate::support::plugin::connect(&kms).await.expect("ready means that the socket takes connections");
    assert_eq!(
        client.status(crate::support::plugin::proto::StatusRequest {}).await.unwrap().into_inner().healthz,
        "ok"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_runs_on_the_encryption_configuration_as_it_stands() {
    let etcd = Etcd::start().await;
    let folder = tempfile::tempdir().unwrap();
    // The default socket: scripts/in-netns gives a /run of our own.
    let _plugin = serve(folder.path(), Path::new(DEFAULT_SOCKET), Vec::new());
    let options = ApiServerOptions {
        encryption: Encryption::File(manifests().join("encryption-configuration.yaml")),
        automatic_reload: true,
        ..ApiServerOptions::default()
    };
    let mut server = ApiServer::start(&etcd, &options).await;

    let secrets: Api<Secret> = Api::namespaced(server.client(), "default");
    let config_maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}});
    secrets.create(&PostParams::default(), &from_value(secret).unwrap()).await.unwrap();
    let config_map = json!({"metadata": {"name": "c"}, "data": {"k": "v"}});
    config_maps.create(&PostParams::default(), &from_value(config_map).unwrap()).await.unwrap();
    for key in ["/registry/secrets/default/s", "/registry/configmaps/default/c"] {
        let stored = etcd.get(key).await.unwrap();
        assert!(stored.starts_with(b"k8s:enc:kms:v2:kube-envelope:"), "{key}");
    }
    server.stop();
    server.restart().await;
    assert_eq!(secrets.get("s").await.unwrap().data.unwrap()["k"].0, b"v");
    assert_eq!(config_maps.get("c").await.unwrap().data.unwrap()["k"], "v");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_accepts_the_pods_field_by_field() {
    let etcd = Etcd::start().await;
    let server = ApiServer::start(&etcd, &ApiServerOptions::default()).await;
    // No controller runs here to make it.
    let accounts: Api<ServiceAccount> = Api::namespaced(server.client(), "kube-system");
    let account = from_value(json!({"metadata": {"name": "default"}})).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();

    let pods: Api<Pod> = Api::namespaced(server.client(), "kube-system");
    let mut strict = PatchParams::apply("test").validation_strict();
    strict.dry_run = true;
    for pod in [yaml(&manifest("static-pod.yaml")), patched_api_server()] {
        let name = pod["metadata"]["name"].as_str().unwrap();
        pods.patch(name, &strict, &Patch::Apply(&pod)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_patched_api_server_meets_the_plugin_and_finds_its_encryption_configuration() {
    let pod = patched_api_server();
    let container = &pod["spec"]["containers"][0];
    let host_path = |mount: &Value| {
        let volume = find(&pod["spec"]["volumes"], "name", mount["name"].as_str().unwrap());
        volume["hostPath"]["path"].as_str().unwrap().to_owned()
    };
    let socket = find(&container["volumeMounts"], "mountPath", parent(DEFAULT_SOCKET));
    assert_eq!(host_path(&socket), parent(DEFAULT_SOCKET));

    let command = strings(&container["command"]);
    let file = command.iter().find_map(|flag| flag.strip_prefix("--encryption-provider-config=")).unwrap();
    let mount = find(&container["volumeMounts"], "mountPath", parent(file));
    assert_eq!(host_path(&mount), parent(file));
    assert!(manifests().join(Path::new(file).file_name().unwrap()).is_file());

    let encryption = yaml(&manifest("encryption-configuration.yaml"));
    let kms = &encryption["resources"][0]["providers"][0]["kms"];
    assert_eq!(kms["endpoint"], format!("unix://{DEFAULT_SOCKET}"));
}

/// Starts the plugin with a keyring of its own in `folder`.
fn serve(folder: &Path, socket: &Path, environment: Vec<(std::ffi::OsString, std::ffi::OsString)>) -> Process {
    let keyring = folder.join("keyring.json");
    Keyring::create(&mut rand::rng()).write_new(&keyring).unwrap();
    let config = folder.join("config.yaml");
    let text = format!(
        "cluster: c\nsocket: {}\nstateDir: {}\nkeks: [{{name: k, keyring: {{file: {}}}}}]\n\
         health: {{ listen: \"127.0.0.1:{}\" }}\n",
        socket.display(),
        folder.join("state").display(),
        keyring.display(),
        free_port()
    );
    std::fs::write(&config, text).unwrap();
    let arguments = vec!["serve".into(), "--config".into(), config.into()];
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_kube-envelope"));
    Process::start("kube-envelope", binary, arguments, environment, folder.join("kube-envelope.log"))
}

/// A static pod of the shape that kubeadm writes, with the patch applied. The patch only appends to lists.
fn patched_api_server() -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kube-apiserver", "namespace": "kube-system"},
        "spec": {
            "hostNetwork": true,
            "containers": [{
                "name": "kube-apiserver", "image": "registry.k8s.io/kube-apiserver:v1.37.2",
                "command": ["kube-apiserver", "--secure-port=6443"],
                "volumeMounts": [{"name": "k8s-certs", "mountPath": "/etc/kubernetes/pki", "readOnly": true}],
            }],
            "volumes": [{"name": "k8s-certs", "hostPath": {"path": "/etc/kubernetes/pki"}}],
        },
    });
    let patch = yaml(&manifest("kube-apiserver-patch.yaml"));
    for operation in patch.as_array().unwrap() {
        assert_eq!(operation["op"], "add");
        let list = operation["path"].as_str().unwrap().strip_suffix("/-").unwrap();
        let list = pod.pointer_mut(list).unwrap().as_array_mut().unwrap();
        list.push(operation["value"].clone());
    }
    pod
}

/// `command` is one that the program understands, with the default configuration file.
fn assert_serves(command: &[String]) {
    let cli = Cli::try_parse_from(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let Command::Serve(args) = cli.command else { panic!("{command:?} does not serve") };
    assert_eq!(args.config, Path::new(DEFAULT_PATH));
}

/// Takes settings out of their comments: lines of the form `# name: value`. Also how many there were.
fn uncomment(text: &str) -> (String, usize) {
    let mut count = 0;
    let is_setting = |line: &str| {
        line.split_once(": ").is_some_and(|(name, _)| !name.is_empty() && name.chars().all(char::is_alphanumeric))
    };
    let lines = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(setting) if is_setting(setting) => {
            count += 1;
            setting
        }
        _ => line,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    (text, count)
}

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests")
}

fn manifest(name: &str) -> String {
    std::fs::read_to_string(manifests().join(name)).unwrap()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn parent(path: &str) -> &str {
    Path::new(path).parent().unwrap().to_str().unwrap()
}

fn strings(list: &Value) -> Vec<String> {
    from_value(list.clone()).unwrap()
}

/// The item of `list` whose `field` is `value`.
fn find(list: &Value, field: &str, value: &str) -> Value {
    let found = list.as_array().unwrap().iter().find(|item| item[field] == value);
    found.unwrap_or_else(|| panic!("no item with {field}: {value} in {list}")).clone()
}

fn has_key(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(map) => map.contains_key(key) || map.values().any(|value| has_key(value, key)),
        Value::Array(list) => list.iter().any(|value| has_key(value, key)),
        _ => false,
    }
}

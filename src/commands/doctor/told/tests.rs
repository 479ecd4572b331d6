//! One table: every spelling of the same two flags that is known from the field, and what must not be taken for one.

use super::*;

const FILE: &str = "/etc/kubernetes/encryption/e.yaml";

fn pod(arguments: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - {{ name: sidecar, command: [sleep] }}\n  - name: api\n    image: r/kube-apiserver:v1.37.2\n{arguments}\n\
         \x20   volumeMounts: [{{ name: e, mountPath: /etc/kubernetes/encryption }}]\n  volumes: [{{ name: e, hostPath: {{ path: /host }} }}]\n"
    )
}

/// What is told, and where the file lies on the host.
fn understood(file: &str, text: &str) -> (String, bool, Option<PathBuf>) {
    let told = Told::read(Path::new(file), text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let value = told.flag("encryption-provider-config").unwrap_or_default().to_owned();
    (value, told.is_on("encryption-provider-config-automatic-reload"), told.on_host(Path::new(FILE)))
}

#[test]
fn every_spelling_of_a_pod_is_understood() {
    let flag = "--encryption-provider-config";
    for arguments in [
        format!("    command: [kube-apiserver, {flag}={FILE}, {flag}-automatic-reload=true]"),
        format!("    command: [kube-apiserver, {flag}, {FILE}, {flag}-automatic-reload]"),
        format!("    command: [kube-apiserver]\n    args:\n    - {flag}\n    - {FILE}\n    - {flag}-automatic-reload"),
        format!(
            "    command: [/bin/sh, -c]\n    args: ['exec /usr/local/bin/kube-apiserver {flag}={FILE} {flag}-automatic-reload=true 2>&1 | tee x']"
        ),
        format!(
            "    command: [sh, -c, \"kube-apiserver \\\\\\n  {flag} '{FILE}' \\\\\\n  {flag}-automatic-reload=true\"]"
        ),
    ] {
        let told = understood("kube-apiserver.yaml", &pod(&arguments));
        assert_eq!(told, (FILE.into(), true, Some("/host/e.yaml".into())), "{arguments}");
    }
}

#[test]
fn configurations_of_kubeadm_k3s_and_rke2_are_understood() {
    let volumes = "extraVolumes: [{name: e, hostPath: /host, mountPath: /etc/kubernetes/encryption}]";
    for arguments in [
        format!(
            "[{{name: encryption-provider-config, value: {FILE}}}, {{name: encryption-provider-config-automatic-reload, value: 'true'}}]"
        ),
        format!("{{encryption-provider-config: {FILE}, encryption-provider-config-automatic-reload: 'true'}}"),
    ] {
        let text = format!(
            "kind: InitConfiguration\n---\nkind: ClusterConfiguration\napiServer: {{extraArgs: {arguments}, {volumes}}}\n"
        );
        assert_eq!(understood("kubeadm.yaml", &text), (FILE.into(), true, Some("/host/e.yaml".into())), "{text}");
    }
    for name in ["kube-apiserver-arg", "kube-apiserver-arg+"] {
        let text = format!(
            "{name}:\n- encryption-provider-config={FILE}\n- encryption-provider-config-automatic-reload=true\n"
        );
        assert_eq!(understood("/etc/rancher/k3s/config.yaml", &text), (FILE.into(), true, Some(FILE.into())));
        assert_eq!(understood("/etc/rancher/rke2/config.yaml", &text).2, None, "RKE2's pod sees what is mounted alone");
        let text = format!("{text}kube-apiserver-extra-mount: ['/host:/etc/kubernetes/encryption:ro']\n");
        assert_eq!(understood("/etc/rancher/rke2/config.yaml", &text).2, Some("/host/e.yaml".into()));
    }
    let one = format!("kube-apiserver-arg: encryption-provider-config={FILE}\n");
    assert_eq!(understood("config.yaml", &one).0, FILE);
}

#[test]
fn units_command_lines_and_files_of_arguments_are_understood() {
    let flag = "--encryption-provider-config";
    for text in [
        format!(
            "[Service]\nExecStart=/usr/bin/kube-apiserver \\\n  {flag}={FILE} \\\n  {flag}-automatic-reload=true\n"
        ),
        format!(
            "[Service]\nExecStart=/bin/old\nExecStart=\nExecStart=-/usr/bin/kube-apiserver {flag} {FILE} {flag}-automatic-reload\n"
        ),
        format!("[Service]\nExecStart=/bin/sh -c \"exec kube-apiserver {flag}={FILE} {flag}-automatic-reload=true\"\n"),
        format!("kube-apiserver\0{flag}={FILE}\0{flag}-automatic-reload=true\0"),
        format!("{flag}={FILE}\n{flag}-automatic-reload=true\n"),
    ] {
        assert_eq!(understood("x", &text), (FILE.into(), true, Some(FILE.into())), "{text}");
    }
}

#[test]
fn what_is_not_understood_is_said_to_be_so() {
    for (text, why) in [
        ("[Service]\nExecStart=/usr/bin/kube-apiserver $KUBE_API_ARGS\n", "$KUBE_API_ARGS"),
        ("[Service]\nExecStart=/usr/bin/kubelet --x\n", "not kube-apiserver"),
        ("kubelet\0--x\0", "not kube-apiserver"),
        ("spec: {containers: [{name: etcd, command: [etcd]}]}", "none of its containers"),
        ("write-kubeconfig-mode: '0644'\n", "neither a kube-apiserver"),
        ("a: [", "not YAML"),
        ("", "neither a kube-apiserver"),
    ] {
        let error = Told::read(Path::new("f"), text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn a_flag_that_is_off_or_missing_is_seen() {
    let text = pod("    command: [kube-apiserver, --encryption-provider-config-automatic-reload=false, --v=2]");
    assert_eq!(understood("f", &text), (String::new(), false, Some("/host/e.yaml".into())));
}

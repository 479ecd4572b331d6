//! What is to be done with the files, in order; and the way back.

use std::fmt::Write;

use super::distribution::{Runs, UNIT};
use super::files::ENCRYPTION;
use super::former::First;
use super::wanted::Wanted;
use crate::cli::install::Distribution;

/// Printed after the files. The words for a person; every command as it is to be typed.
pub(super) fn text(wanted: &Wanted) -> String {
    let mut steps = Steps { text: String::new(), number: 0 };
    let several = wanted.control_planes > 1;
    steps.title(&format!(
        "Next, on {}",
        if several {
            format!("all {} control-plane nodes", wanted.control_planes)
        } else {
            "the control-plane node".into()
        }
    ));
    begin(&mut steps, wanted);
    switch_on(&mut steps, wanted);
    if wanted.begins_with() == First::Former {
        second_phase(&mut steps, wanted);
    }
    first_encryption(&mut steps, wanted);
    steps.title("The way back");
    way_back(&mut steps, wanted);
    let _ = write!(
        steps.text,
        "\n`kube-envelope policy --config {}` prints the minimal policy for the KEK.\n",
        wanted.root.join(config_file(wanted)).display()
    );
    steps.text
}

fn config_file(wanted: &Wanted) -> &'static str {
    match wanted.place.distribution {
        Distribution::Kind => "etc/config.yaml",
        _ => wanted.place.config().trim_start_matches('/'),
    }
}

struct Steps {
    text: String,
    number: u32,
}

impl Steps {
    fn title(&mut self, title: &str) {
        let _ = write!(self.text, "\n{title}:\n");
        self.number = 0;
    }

    fn step(&mut self, text: &str) {
        self.number += 1;
        let _ = writeln!(self.text, "  {}. {text}", self.number);
    }

    fn command(&mut self, command: &str) {
        let _ = writeln!(self.text, "     {command}");
    }
}

/// Files, keyring, plugin: nothing of this touches the API server.
fn begin(steps: &mut Steps, wanted: &Wanted) {
    let place = &wanted.place;
    if wanted.kind == "keyring" {
        let file = wanted.settings.get("file").and_then(|file| file.as_str()).unwrap_or_default();
        steps.step("Create the keyring once, on one node, and copy it to the others; keep a copy elsewhere. Never create a second one.");
        steps.command(&format!("kube-envelope keyring create {file}"));
    }
    // The tool puts the files on the nodes, and starts the plugin with the API server.
    if place.is_given_to_a_tool() {
        return;
    }
    let is_here = wanted.root.as_os_str() == "/";
    if wanted.control_planes > 1 || !is_here {
        steps.step("Copy the files to each control-plane node: the same everywhere, root's, mode 0600.");
        steps.command(&format!(
            "tar -C {} -c {} | ssh NODE tar -C / -x --no-same-owner",
            wanted.root.display(),
            tops(wanted)
        ));
    }
    match place.runs {
        Runs::Pod(_) => steps.step("The kubelet starts the plugin as soon as its image is available. It must be ready on every node, with the same key_id:"),
        Runs::Unit | Runs::Document => {
            steps.step("Start the plugin (the binary is /usr/local/bin/kube-envelope). It must be ready on every node, with the same key_id:");
            steps.command("systemctl daemon-reload && systemctl enable --now kube-envelope");
        }
    }
    steps.command(&format!("kube-envelope doctor --encryption-config {ENCRYPTION}/encryption-configuration.yaml"));
    steps.command("kube-envelope status");
}

/// The folders to copy.
fn tops(wanted: &Wanted) -> String {
    let mut folders = vec!["etc/kube-envelope", "etc/kubernetes/encryption"];
    match wanted.place.runs {
        Runs::Pod(folder) => folders.push(folder),
        Runs::Unit | Runs::Document => folders.push(UNIT),
    }
    folders.push(match wanted.place.distribution {
        Distribution::Kubeadm => "etc/kubernetes/patches",
        Distribution::K3s => "etc/rancher/k3s/config.yaml.d",
        Distribution::Rke2 => "etc/rancher/rke2/config.yaml.d",
        _ => return joined(&folders, wanted),
    });
    joined(&folders, wanted)
}

fn joined(folders: &[&str], wanted: &Wanted) -> String {
    let files = folders.iter().map(|folder| match (*folder, wanted.place.runs) {
        // Not the other manifests of this node.
        (folder, Runs::Pod(of_pods)) if folder == of_pods => {
            format!("{}/kube-envelope.yaml", folder.trim_start_matches('/'))
        }
        (folder, _) => folder.trim_start_matches('/').to_owned(),
    });
    files.collect::<Vec<_>>().join(" ")
}

/// The API servers get their file, one after the other.
fn switch_on(steps: &mut Steps, wanted: &Wanted) {
    let one_by_one =
        if wanted.control_planes > 1 { ", one node after the other, each ready before the next" } else { "" };
    match wanted.place.distribution {
        Distribution::Kubeadm if wanted.is_new => {
            steps.step("Make the cluster with the patch; the same two lines in the JoinConfiguration of the others:");
            steps.command("printf 'apiVersion: kubeadm.k8s.io/v1beta4\\nkind: InitConfiguration\\npatches: { directory: /etc/kubernetes/patches }\\n' >kubeadm.yaml");
            steps.command("kubeadm init --config kubeadm.yaml");
        }
        Distribution::Kubeadm => {
            steps.step(&format!("Create the API server's static pod again with the patch{one_by_one}. Use --patches for every later upgrade as well:"));
            steps.command("kubeadm upgrade node phase control-plane --etcd-upgrade=false --certificate-renewal=false --patches /etc/kubernetes/patches");
            steps.command("kubectl get --raw '/readyz?verbose'");
        }
        Distribution::K3s => restart(steps, "k3s", one_by_one),
        Distribution::Rke2 => restart(steps, "rke2-server", one_by_one),
        Distribution::Systemd => {
            steps.step(&format!("Add these flags to kube-apiserver's unit and restart it{one_by_one}:"));
            steps.command(&format!("--encryption-provider-config={ENCRYPTION}/encryption-configuration.yaml"));
            steps.command("--encryption-provider-config-automatic-reload=true");
        }
        Distribution::Talos => {
            let file = if wanted.begins_with() == First::Plugin {
                "talos-plugin-first.yaml"
            } else {
                "talos-former-first.yaml"
            };
            steps.step("Take secretboxEncryptionSecret and aescbcEncryptionSecret out of the machine configuration (their key is in the patch), and apply the patch to each node:");
            steps.command(&format!("talosctl -n NODE patch machineconfig --patch @{file}"));
        }
        Distribution::Kind => {
            steps.step("Make the cluster:");
            steps.command("kind create cluster --config kind.yaml");
        }
        Distribution::Kops => {
            let file = if wanted.begins_with() == First::Plugin { "plugin-first.yaml" } else { "former-first.yaml" };
            steps.step("Merge kops-cluster.yaml into the cluster's spec, allow the KEK by additionalPolicies, and roll the control plane:");
            steps.command(&format!("kops create secret encryptionconfig -f {file} --force"));
            steps.command(
                "kops update cluster --yes && kops rolling-update cluster --instance-group-roles control-plane --yes",
            );
        }
    }
}

fn restart(steps: &mut Steps, unit: &str, one_by_one: &str) {
    steps.step(&format!("Restart the server{one_by_one}. Do not use its own secrets-encryption from now on:"));
    steps.command(&format!("systemctl restart {unit}"));
}

/// Every API server reads by the plugin; now the plugin may write.
fn second_phase(steps: &mut Steps, wanted: &Wanted) {
    steps.step("Every API server can read what the plugin writes. Only now let the plugin write:");
    swap(steps, wanted, First::Plugin);
}

/// Puts the other order of providers in force.
fn swap(steps: &mut Steps, wanted: &Wanted, first: First) {
    let name = if first == First::Plugin { "plugin-first.yaml" } else { "former-first.yaml" };
    match wanted.place.distribution {
        Distribution::Talos => steps.command(&format!("talosctl -n NODE patch machineconfig --patch @talos-{name}")),
        Distribution::Kops => {
            steps.command(&format!("kops create secret encryptionconfig -f {name} --force"));
            steps.command(
                "kops update cluster --yes && kops rolling-update cluster --instance-group-roles control-plane --yes",
            );
        }
        Distribution::Kind => {
            steps.command("swap the providers in encryption/encryption-configuration.yaml");
        }
        _ => {
            steps.command(&format!(
                "cd {ENCRYPTION} && cp -p {name} next.yaml && mv next.yaml encryption-configuration.yaml"
            ));
            steps.command("(on every node; the API servers read it within a minute)");
        }
    }
}

fn first_encryption(steps: &mut Steps, wanted: &Wanted) {
    let place = &wanted.place;
    if wanted.is_new {
        steps.step("Prove that everything is under the plugin's key:");
    } else {
        steps.step("Rewrite everything that is stored, and prove it. Earlier snapshots still have the old data:");
    }
    if place.distribution == Distribution::Talos {
        steps.command("talosctl -n NODE etcd snapshot etcd.db        # there is no etcd client on a node");
    }
    rotate(steps, wanted, First::Plugin);
}

/// Where no file of its own is on a node, what is encrypted is found out from the API servers.
fn rotate(steps: &mut Steps, wanted: &Wanted, first: First) {
    let place = &wanted.place;
    let file = match place.distribution {
        Distribution::Talos => None,
        Distribution::Kops if first == First::Plugin => Some("plugin-first.yaml".to_owned()),
        Distribution::Kops => Some("former-first.yaml".to_owned()),
        Distribution::Kind => Some("encryption/encryption-configuration.yaml".to_owned()),
        _ => Some(format!("{ENCRYPTION}/encryption-configuration.yaml")),
    };
    let encryption = file.map(|file| format!(" --encryption-config {file}")).unwrap_or_default();
    steps.command(&format!("kube-envelope rotate-keys --kubeconfig {}{encryption} \\", place.kubeconfig()));
    let has_etcd = wanted.control_planes > 1 || wanted.root.join("var/lib/rancher/k3s/server/db/etcd").exists();
    steps.command(place.etcd_flags(has_etcd));
}

fn way_back(steps: &mut Steps, wanted: &Wanted) {
    let to = if wanted.former.encrypts() {
        format!("the former provider ({})", wanted.former.names().join(", "))
    } else {
        "identity, which does not encrypt".to_owned()
    };
    steps.step(&format!("Let {to} write, on every node; the plugin still reads:"));
    // In the reverse order of the way there: as long as values are under the plugin's key, every API server must read by it.
    swap(steps, wanted, First::Former);
    steps.step("Rewrite everything, and prove it, while the plugin runs everywhere:");
    rotate(steps, wanted, First::Former);
    steps.step("On Yes, remove the plugin's provider from the file of every API server, and only then the plugin.");
    steps.step("Keep the KEK as long as a snapshot from the time with the plugin must stay restorable.");
}

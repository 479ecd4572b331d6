//! What kube-apiserver is started with, read from whatever file says it: a static pod, a kubeadm configuration, a k3s
//! or RKE2 configuration, a systemd unit, a file of arguments, `/proc/PID/cmdline`. A file that is none of these is said to be
//! not understood: what is not seen is never taken for "nothing is encrypted".

mod words;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use self::words::split;

/// The flags, and what of this machine the API server sees.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Name without dashes → value; an empty one for a flag without a value.
    flags: BTreeMap<String, String>,
    /// Folder or file of the host → where the API server sees it; none where it runs on the host itself.
    mounts: Option<Vec<(PathBuf, PathBuf)>>,
    /// The pod's image.
    pub(super) image: Option<String>,
}

impl Told {
    /// # Errors
    /// Why the text is not understood.
    pub(super) fn read(file: &Path, text: &str) -> Result<Self, String> {
        // Words in /proc/PID/cmdline end with a NUL, which no text file has.
        if text.contains('\0') {
            return Self::of_command(
                &text.split('\0').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>(),
            );
        }
        // Before YAML is tried: a file of arguments alone is a YAML text, too, of one long string.
        if text.lines().any(|line| line.trim_start().starts_with("ExecStart")) {
            return Self::of_unit(text);
        }
        if text.trim_start().starts_with("--") {
            return Ok(Self { flags: flags(&split(text)), ..Self::default() });
        }
        let documents: Vec<Value> = serde_saphyr::from_multiple(text)
            .map_err(|error| format!("it is not YAML: {}", error.without_snippet()))?;
        // Both have the same fields, and only the path tells them apart (/etc/rancher/rke2, /etc/rancher/k3s).
        let is_rke2 = file.to_string_lossy().contains("rke2");
        let found = documents.iter().find_map(|one| Self::of_document(one, is_rke2));
        found.unwrap_or_else(|| Err("it has neither a kube-apiserver nor arguments for one".into()))
    }

    fn of_document(document: &Value, is_rke2: bool) -> Option<Result<Self, String>> {
        let of_pod = document["spec"]["containers"].as_array().map(|containers| Self::of_pod(document, containers));
        let of_kubeadm = || document["apiServer"].as_object().map(|_| Ok(Self::of_kubeadm(&document["apiServer"])));
        let of_rancher = || {
            let named = ["kube-apiserver-arg", "kube-apiserver-arg+"].map(|name| &document[name]);
            named.iter().any(|value| !value.is_null()).then(|| Ok(Self::of_rancher(document, is_rke2)))
        };
        of_pod.or_else(of_kubeadm).or_else(of_rancher)
    }

    /// A static pod: command and arguments, also of a shell's.
    fn of_pod(pod: &Value, containers: &[Value]) -> Result<Self, String> {
        let words = |container: &Value| -> Vec<String> {
            let lists = ["command", "args"].iter().filter_map(|list| container[list].as_array()).flatten();
            lists
                .filter_map(Value::as_str)
                .flat_map(|word| if is_script(word) { split(word) } else { vec![word.into()] })
                .collect()
        };
        let runs = |container: &&Value| {
            container["name"] == "kube-apiserver" || words(container).iter().any(|word| is_api_server(word))
        };
        let container = containers.iter().find(runs).ok_or("none of its containers runs kube-apiserver")?;
        let image = container["image"].as_str().map(str::to_owned);
        Ok(Self { flags: flags(&words(container)), mounts: Some(mounts(pod, container)), image })
    }

    /// A `ClusterConfiguration`: `extraArgs` as a list (v1beta4) or a map (v1beta3).
    fn of_kubeadm(api_server: &Value) -> Self {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let flags = match &api_server["extraArgs"] {
            Value::Object(map) => map.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
            Value::Array(list) => list.iter().map(|one| (text(&one["name"]), text(&one["value"]))).collect(),
            _ => BTreeMap::new(),
        };
        let path = |volume: &Value, field: &str| volume[field].as_str().map(PathBuf::from);
        let volumes = api_server["extraVolumes"].as_array().into_iter().flatten();
        let mounts = volumes.filter_map(|volume| Some((path(volume, "hostPath")?, path(volume, "mountPath")?)));
        // kubeadm itself mounts these.
        let own = ["/etc/kubernetes/pki"].map(|folder| (folder.into(), folder.into()));
        Self { flags, mounts: Some(mounts.chain(own).collect()), image: None }
    }

    /// `kube-apiserver-arg` of k3s, whose API server runs on the host, and of RKE2, whose pod mounts what it is told to.
    fn of_rancher(document: &Value, is_rke2: bool) -> Self {
        let strings = |name: &str| -> Vec<String> {
            let values = [name.to_owned(), format!("{name}+")].map(|name| match &document[name] {
                Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                Value::String(one) => vec![one.clone()],
                _ => Vec::new(),
            });
            values.concat()
        };
        let words: Vec<_> =
            strings("kube-apiserver-arg").iter().map(|word| format!("--{}", word.trim_start_matches('-'))).collect();
        let mounts: Vec<_> = strings("kube-apiserver-extra-mount")
            .iter()
            .filter_map(|mount| {
                let mut parts = mount.split(':');
                Some((parts.next()?.into(), parts.next()?.into()))
            })
            .collect();
        let is_pod = is_rke2 || !mounts.is_empty();
        Self { flags: flags(&words), mounts: is_pod.then_some(mounts), image: None }
    }

    /// A unit: the line of `ExecStart`, which a backslash continues.
    fn of_unit(text: &str) -> Result<Self, String> {
        let joined = text.replace("\\\n", " ");
        // An empty one takes back those before it.
        let starts = joined.lines().filter_map(|line| line.trim_start().strip_prefix("ExecStart="));
        let line = starts.fold("", |_, line| line.trim());
        // Signs before the path that systemd takes for itself (systemd.service(5)).
        let words: Vec<_> = split(line.trim_start_matches(['@', '-', ':', '+', '!']))
            .into_iter()
            .flat_map(|word| if is_script(&word) { split(&word) } else { vec![word] })
            .collect();
        // systemd puts a variable in place only when it starts the unit.
        if let Some(variable) = words.iter().find(|word| word.starts_with('$')) {
            return Err(format!(
                "its arguments come from {variable}: give the file of the unit's EnvironmentFile, or /proc/PID/cmdline of the \
                 running kube-apiserver"
            ));
        }
        Self::of_command(&words)
    }

    fn of_command(words: &[String]) -> Result<Self, String> {
        if !words.iter().any(|word| is_api_server(word)) {
            return Err("the program that it starts is not kube-apiserver".into());
        }
        Ok(Self { flags: flags(words), ..Self::default() })
    }

    /// The value of a flag.
    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        self.flags.get(name).map(String::as_str)
    }

    /// Whether a boolean flag is set.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.flag(name).is_some_and(|value| value.is_empty() || value == "true")
    }

    /// Where a path of the API server's lies on the host, by the innermost mount that holds it.
    pub(super) fn on_host(&self, path: &Path) -> Option<PathBuf> {
        let Some(mounts) = &self.mounts else { return Some(path.to_owned()) };
        let inside = mounts.iter().filter_map(|(host, at)| Some((path.strip_prefix(at).ok()?, host)));
        let (rest, host) = inside.min_by_key(|(rest, _)| rest.components().count())?;
        Some(if rest.as_os_str().is_empty() { host.clone() } else { host.join(rest) })
    }

    /// Whether this very path is mounted, and not a folder that holds it.
    pub(super) fn is_mounted_alone(&self, path: &Path) -> bool {
        self.mounts.iter().flatten().any(|(_, at)| at == path)
    }
}

/// One argument that holds a whole command line, as after `sh -c`.
fn is_script(word: &str) -> bool {
    word.trim().contains(char::is_whitespace) && word.contains("kube-apiserver")
}

fn is_api_server(word: &str) -> bool {
    // hyperkube and k8s call it by a word of its own.
    word.rsplit('/').next() == Some("kube-apiserver")
}

/// Flags as Go's pflag reads them: `--name=value`, `--name value`, and `--name` alone.
fn flags(words: &[String]) -> BTreeMap<String, String> {
    let mut flags = BTreeMap::new();
    let mut rest = words.iter().peekable();
    while let Some(word) = rest.next() {
        let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else { continue };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => (flag, rest.next_if(|next| !next.starts_with('-')).cloned().unwrap_or_default()),
        };
        // Of one that is given twice the last one counts.
        flags.insert(name.to_owned(), value);
    }
    flags
}

/// Host paths of a pod, and where the container has them.
fn mounts(pod: &Value, container: &Value) -> Vec<(PathBuf, PathBuf)> {
    let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let mounts = container["volumeMounts"].as_array().into_iter().flatten();
    let pairs = mounts.filter_map(|mount| {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"])?;
        Some((volume["hostPath"]["path"].as_str()?.into(), mount["mountPath"].as_str()?.into()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests;

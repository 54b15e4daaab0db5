//! What runs on the machine and what its files say, read without a privilege.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The kernel counts time in such ticks for `/proc`, whatever its own are.
const TICKS_A_SECOND: u64 = 100;

/// The machine beneath a directory, which is `/` but in tests.
pub(super) struct Host {
    root: PathBuf,
    processes: Vec<Process>,
}

/// A process that can be seen.
struct Process {
    number: u32,
    /// Its name, of which the kernel keeps 15 characters.
    name: String,
}

impl Host {
    pub(super) fn look(root: &Path) -> Self {
        let mut processes: Vec<Process> = entries(&root.join("proc"))
            .into_iter()
            .filter_map(|(name, path)| {
                let number = name.parse().ok()?;
                let name = fs::read_to_string(path.join("comm")).ok()?.trim_end().to_owned();
                Some(Process { number, name })
            })
            .collect();
        processes.sort_unstable_by_key(|process| process.number);
        Self { root: root.to_owned(), processes }
    }

    /// A process of this name, which may be cut off.
    fn process(&self, name: &str) -> Option<u32> {
        let name = name.get(..15).unwrap_or(name);
        self.processes.iter().find(|process| process.name == name).map(|process| process.number)
    }

    pub(super) fn runs(&self, name: &str) -> bool {
        self.process(name).is_some()
    }

    /// The arguments of every process of this name.
    pub(super) fn arguments(&self, name: &str) -> Vec<Vec<String>> {
        let of = self.processes.iter().filter(|process| process.name == name);
        of.filter_map(|process| {
            let path = self.root.join(format!("proc/{}/cmdline", process.number));
            let line = fs::read(path).ok()?;
            let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
            Some(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
        })
        .collect()
    }

    /// When a process of this name was started.
    pub(super) fn started(&self, name: &str) -> Option<SystemTime> {
        const START: usize = 19;
        let read = |path: String| fs::read_to_string(self.root.join(path)).ok();
        let stat = read(format!("proc/{}/stat", self.process(name)?))?;
        // The name before may have blanks and brackets in it.
        let (_, rest) = stat.rsplit_once(')')?;
        let ticks: u64 = rest.split_whitespace().nth(START)?.parse().ok()?;
        let boot = read("proc/stat".to_owned())?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
        let seconds = boot.trim().parse::<u64>().ok()? + ticks / TICKS_A_SECOND;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// Whether systemd starts this unit with one of its targets.
    pub(super) fn enabled(&self, unit: &str) -> bool {
        ["etc", "run", "usr/lib", "lib"].iter().any(|top| {
            let units = entries(&self.root.join(top).join("systemd/system"));
            let wants = units.iter().filter(|(name, _)| name.ends_with(".wants"));
            wants.into_iter().any(|(_, path)| fs::symlink_metadata(path.join(unit)).is_ok())
        })
    }

    /// Whether systemd has processes, or had them since the boot, for a unit with such a name.
    pub(super) fn has_unit(&self, prefix: &str) -> bool {
        let slices = [
            "sys/fs/cgroup/system.slice",
            "sys/fs/cgroup/systemd/system.slice",
            "run/systemd/units",
        ];
        slices.iter().any(|slice| {
            let units = entries(&self.root.join(slice));
            units.iter().any(|(name, _)| {
                name.strip_prefix("invocation:").unwrap_or(name).starts_with(prefix)
            })
        })
    }

    /// The files of a directory whose names begin and end like this.
    pub(super) fn files(&self, directory: &str, start: &str, end: &str) -> Vec<String> {
        let found = entries(&self.root.join(directory)).into_iter();
        found
            .filter(|(name, _)| name.starts_with(start) && name.ends_with(end))
            .map(|(name, _)| format!("/{directory}/{name}"))
            .collect()
    }

    /// Whether a line of a file is this one.
    pub(super) fn says(&self, file: &str, line: &str) -> bool {
        let text = fs::read_to_string(self.root.join(file)).unwrap_or_default();
        text.lines().any(|its| its.trim() == line)
    }

    /// What a setting of a daemon of systemd's is, its drop-ins included, and the file that says so.
    pub(super) fn setting(
        &self,
        name: &str,
        section: &str,
        key: &str,
    ) -> Option<(String, PathBuf)> {
        const PLACES: [&str; 4] = ["usr/lib", "usr/local/lib", "run", "etc"];
        let whole = |top: &&str| self.root.join(top).join("systemd").join(name);
        // The main file is one, the first in the order of importance.
        let main = PLACES.iter().rev().map(whole).find(|path| path.is_file());
        // Of drop-ins the name counts, and where two have one the more important place.
        let mut drop_ins = BTreeMap::new();
        for top in PLACES {
            let directory = self.root.join(top).join("systemd").join(format!("{name}.d"));
            let files = entries(&directory).into_iter();
            drop_ins.extend(files.filter(|(name, _)| name.ends_with(".conf")));
        }
        let files = main.into_iter().chain(drop_ins.into_values());
        let said =
            |path: PathBuf| Some((last(&fs::read_to_string(&path).ok()?, section, key)?, path));
        files.filter_map(said).next_back()
    }

    /// When a file came to be what it is.
    pub(super) fn changed(path: &Path) -> Option<SystemTime> {
        let seconds = u64::try_from(fs::metadata(path).ok()?.ctime()).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// A path as the machine has it.
    pub(super) fn shown(&self, path: &Path) -> String {
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        Path::new("/").join(path).to_string_lossy().into_owned()
    }
}

/// What a file of systemd's says last of a key of this section.
fn last(text: &str, section: &str, key: &str) -> Option<String> {
    let (mut within, mut value) = (false, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            within = name.trim_end_matches(']') == section;
        } else if let Some((name, its)) = line.split_once('=')
            && within
            && name.trim() == key
        {
            value = Some(its.trim().to_owned());
        }
    }
    value
}

/// Names and paths of a directory's entries; none where it cannot be read.
fn entries(directory: &Path) -> BTreeSet<(String, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn host(files: &[(&str, &str)]) -> (TempDir, Host) {
        let root = TempDir::new().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::look(root.path());
        (root, host)
    }

    #[test]
    fn the_last_drop_in_counts_and_one_in_etc_hides_its_namesake() {
        let yes = "[Network]\nManageForeignRoutes=yes\n";
        let no = "# why\n[DHCP]\nManageForeignRoutes=yes\n[Network]\nManageForeignRoutes = no\n";
        let value = |files: &[(&str, &str)]| {
            let (_root, host) = host(files);
            let found = host.setting("networkd.conf", "Network", "ManageForeignRoutes");
            found.map(|(value, path)| (value, host.shown(&path)))
        };
        let is = |value: &str, path: &str| Some((value.to_owned(), path.to_owned()));
        let (etc, usr) =
            ("etc/systemd/networkd.conf", "usr/lib/systemd/networkd.conf.d/50-enid.conf");
        let (hides, later) = (
            "etc/systemd/networkd.conf.d/50-enid.conf",
            "run/systemd/networkd.conf.d/90-more.conf",
        );
        assert_eq!(value(&[]), None);
        assert_eq!(value(&[(etc, yes)]), is("yes", "/etc/systemd/networkd.conf"));
        assert_eq!(value(&[(etc, yes), (usr, no)]), is("no", &format!("/{usr}")));
        assert_eq!(value(&[(usr, no), (hides, "")]), None);
        assert_eq!(value(&[(usr, no), (later, yes)]), is("yes", &format!("/{later}")));
    }

    #[test]
    fn processes_have_names_arguments_and_a_beginning() {
        let stat = format!("7 (systemd (x) y) S {}12345 0", "0 ".repeat(18));
        let (_root, host) = host(&[
            ("proc/stat", "cpu 1\nbtime 1000\n"),
            ("proc/7/comm", "systemd-network\n"),
            ("proc/7/stat", &stat),
            ("proc/8/comm", "docker-proxy\n"),
            ("proc/8/cmdline", "docker-proxy\0-host-port\080\0"),
            ("proc/self/comm", "other\n"),
        ]);
        assert!(host.runs("systemd-networkd") && !host.runs("other"));
        assert_eq!(host.arguments("docker-proxy"), [["docker-proxy", "-host-port", "80"]]);
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + 123);
        assert_eq!(host.started("systemd-networkd"), Some(start));
    }
}

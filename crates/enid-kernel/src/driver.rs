//! Which driver a link's device has: the kernel tells the device, and only files tell its driver.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use enid_core::object::{LinkIndex, Mac};
use enid_core::observed::Link;

/// A device by its bus (`pci`, `virtio`, …) and its name there.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Device {
    pub(crate) bus: String,
    pub(crate) name: String,
}

/// What makes a link another one than the one that was asked about.
type Asked = (LinkIndex, String, Option<Mac>, Option<Device>);

/// The drivers that have been read. A link keeps its driver as long as it lives, so that no file is
/// read of a link that is known.
#[derive(Debug)]
pub(crate) struct Drivers {
    /// Where sysfs is.
    root: PathBuf,
    known: BTreeMap<Asked, Option<String>>,
}

impl Default for Drivers {
    fn default() -> Self {
        Self { root: PathBuf::from("/sys"), known: BTreeMap::new() }
    }
}

impl Drivers {
    /// Puts its driver into each link, and forgets the links that are gone.
    pub(crate) fn fill(&mut self, links: &mut [Link], mut devices: BTreeMap<LinkIndex, Device>) {
        let mut before = std::mem::take(&mut self.known);
        for link in links {
            let device = devices.remove(&link.index);
            if device.is_none() && link.kind.is_some() {
                continue;
            }
            let asked = (link.index, link.name.clone(), link.mac, device);
            let known = before.remove_entry(&asked);
            let (asked, driver) = known.unwrap_or_else(|| {
                let driver = self.read(&asked);
                (asked, driver)
            });
            link.driver.clone_from(&driver);
            self.known.insert(asked, driver);
        }
    }

    fn read(&self, (index, name, mac, device): &Asked) -> Option<String> {
        match device {
            // Buses are the machine's, whatever the network namespace.
            Some(Device { bus, name }) => {
                driver_of(&self.root.join("bus").join(bus).join("devices").join(name))
            }
            // Kernels before 5.14 do not tell the device, and links go by name in sysfs, in the
            // network namespace for which it was mounted: it may mean another link.
            None => {
                let link = self.root.join("class/net").join(name);
                let driver = driver_of(&link.join("device"))?;
                let says = |file: &str| fs::read_to_string(link.join(file)).ok();
                let same = says("ifindex")?.trim().parse() == Ok(index.0)
                    && says("address")?.trim().parse().ok() == *mac;
                same.then_some(driver)
            }
        }
    }
}

/// The name of the driver that a device's directory points to.
fn driver_of(device: &Path) -> Option<String> {
    let driver = fs::read_link(device.join("driver")).ok()?;
    Some(driver.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use enid_core::object::LinkGroup;
    use tempfile::TempDir;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 5]);

    fn link(name: &str, kind: Option<&str>) -> Link {
        Link {
            index: LinkIndex(2),
            name: name.to_owned(),
            alternative_names: Vec::new(),
            kind: kind.map(str::to_owned),
            driver: None,
            mac: Some(MAC),
            up: true,
            carrier: true,
            mtu: 1500,
            group: LinkGroup(0),
            master: None,
            ipv6: true,
            sysctls: BTreeMap::new(),
        }
    }

    /// A sysfs with the link `ens5`, which is number 2.
    fn sysfs() -> (TempDir, Drivers) {
        let sysfs = TempDir::new().unwrap();
        let (device, net) = (
            sysfs.path().join("bus/pci/devices/0000:00:05.0"),
            sysfs.path().join("class/net/ens5"),
        );
        for directory in [&device, &net] {
            fs::create_dir_all(directory).unwrap();
        }
        symlink("../../../../bus/pci/drivers/ena", device.join("driver")).unwrap();
        symlink(&device, net.join("device")).unwrap();
        fs::write(net.join("ifindex"), "2\n").unwrap();
        fs::write(net.join("address"), format!("{MAC}\n")).unwrap();
        let drivers = Drivers { root: sysfs.path().to_owned(), ..Drivers::default() };
        (sysfs, drivers)
    }

    fn driver(
        drivers: &mut Drivers,
        mut link: Link,
        device: Option<(&str, &str)>,
    ) -> Option<String> {
        let device = device.map(|(bus, name)| {
            let device = Device { bus: bus.to_owned(), name: name.to_owned() };
            (link.index, device)
        });
        drivers.fill(std::slice::from_mut(&mut link), device.into_iter().collect());
        link.driver
    }

    const ENA: Option<(&str, &str)> = Some(("pci", "0000:00:05.0"));

    #[test]
    fn the_device_that_the_kernel_tells_has_the_driver_whatever_the_link_is_called() {
        let (_sysfs, mut drivers) = sysfs();
        assert_eq!(driver(&mut drivers, link("eth7", None), ENA).as_deref(), Some("ena"));
        let other = Some(("pci", "0000:00:06.0"));
        assert_eq!(
            driver(&mut drivers, link("ens5", None), other),
            None,
            "there is no such device"
        );
    }

    #[test]
    fn without_a_device_a_link_is_believed_only_if_number_and_address_agree() {
        let (_sysfs, mut drivers) = sysfs();
        let here = link("ens5", None);
        assert_eq!(driver(&mut drivers, here.clone(), None).as_deref(), Some("ena"));
        let elsewhere = [
            Link { index: LinkIndex(3), ..here.clone() },
            Link { mac: Some(Mac([2, 0, 0, 0, 0, 6])), ..here.clone() },
            Link { mac: None, ..here },
            link("ens6", None),
            link("ens5", Some("veth")),
        ];
        for link in elsewhere {
            assert_eq!(driver(&mut drivers, link.clone(), None), None, "{link:?}");
        }
    }

    #[test]
    fn a_known_link_costs_no_file_and_one_that_is_gone_is_forgotten() {
        let (sysfs, mut drivers) = sysfs();
        let driver = |drivers: &mut Drivers| driver(drivers, link("ens5", None), ENA);
        assert!(driver(&mut drivers).is_some());
        fs::remove_dir_all(sysfs.path().join("bus")).unwrap();
        assert!(driver(&mut drivers).is_some());
        drivers.fill(&mut [], BTreeMap::new());
        assert_eq!(driver(&mut drivers), None);
    }
}

//! Quiet points: faults end, enid comes to rest, and then everything must be exactly as it should.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use vpc::IpNet;
use vpc::imds::Eni;

use super::cloud::addresses;
use super::kernel::{Kernel, Link, is_foreign};
use super::say;
use super::stage::Soak;
use super::vandals::table;
use super::{operator, vandals};

/// By then it must have come to rest: fights and pauses after failures end within a minute.
const PATIENCE: Duration = Duration::from_secs(180);
/// After a 403 enid asks again after minutes only, and the VPC's CIDRs are read again every ten; an
/// operator who knows better says so.
const HELP: Duration = Duration::from_secs(3);
/// What it waits for after this is shown.
const SLOW: Duration = Duration::from_secs(20);
/// And what is disturbed in perfect calm must be back by then.
const CALM: Duration = Duration::from_secs(30);
/// The kernel's table of addresses that are its own.
const LOCAL: u32 = 255;
const PAUSE: Duration = Duration::from_millis(150);

impl Soak {
    /// Ends all trouble, waits for rest and looks closely.
    pub(super) fn come_to_rest(&mut self) -> anyhow::Result<()> {
        self.note("quiet is asked for");
        self.end_due(true)?;
        self.mend()?;
        self.start_again()?;
        self.operator.hang_up();
        let began = Instant::now();
        let mut slow = std::mem::take(&mut self.slow);
        let mut last = Vec::new();
        loop {
            self.tick()?;
            operator::unhold(self)?;
            let wrong = self.wrong()?;
            if wrong.is_empty() {
                break;
            }
            last.clone_from(&wrong);
            if began.elapsed() > PATIENCE {
                let what = format!("no rest after {PATIENCE:?}: {wrong:#?}");
                self.violation(&what, None)?;
                break;
            }
            if slow && began.elapsed() > HELP {
                slow = false;
                self.count("rests that an enictl refresh hastened");
                self.daemon.enictl().run(&["refresh"])?;
            }
            std::thread::sleep(PAUSE);
        }
        if began.elapsed() > SLOW {
            say(&format!("       slow to rest; what was waited for last: {last:#?}"))?;
        }
        self.rests.push(began.elapsed());
        self.note("at rest");
        self.leftovers()?;
        self.commands_end()?;
        self.calm()?;
        self.look_quietly()
    }

    /// What somebody replaced and the cloud no longer grants is still there; its owner removes it.
    fn leftovers(&mut self) -> anyhow::Result<()> {
        let kernel = Kernel::read(&self.instance)?;
        for eni in self.attached() {
            let granted = addresses(&eni);
            let Some(link) = kernel.link_of(&eni.mac.to_string()) else { continue };
            let taken: Vec<IpAddr> = self
                .taken
                .iter()
                .filter(|(id, address)| *id == eni.id && !granted.contains(address))
                .map(|(_, address)| *address)
                .collect();
            for address in taken {
                if !link.addresses.contains_key(&address) {
                    self.violation(&format!("{address} was replaced, and is gone"), None)?;
                }
                self.taken.remove(&(eni.id.clone(), address));
                self.instance.ip_batch(&[format!("addr del {address}/32 dev {}", link.name)])?;
            }
        }
        Ok(())
    }

    /// One act in perfect calm: no poll, no timer and no operator brings enid to look at it.
    fn calm(&mut self) -> anyhow::Result<()> {
        let acts = [
            vandals::rule,
            vandals::flush_rules,
            vandals::flush_table,
            vandals::address,
            // Nothing else shows whether lost events are a reason to look.
            vandals::unheard,
            vandals::unheard,
        ];
        let Some(act) = self.dice.pick(&acts) else { return Ok(()) };
        if !act(self)? {
            return Ok(());
        }
        self.count("acts of vandals in calm");
        let began = Instant::now();
        loop {
            self.tick()?;
            let mut wrong = self.wrong_unasked()?;
            if wrong.is_empty() {
                wrong = self.planned()?;
            }
            if wrong.is_empty() {
                return Ok(());
            }
            if began.elapsed() > CALM {
                let what = format!("not repaired after {CALM:?} of calm: {wrong:#?}");
                return self.violation(&what, None);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Everything that is not as it should be when all is quiet.
    fn wrong(&self) -> anyhow::Result<Vec<String>> {
        let mut wrong = self.wrong_unasked()?;
        wrong.extend(self.planned()?);
        Ok(wrong)
    }

    /// What enid would do. To be asked brings it to look.
    fn planned(&self) -> anyhow::Result<Vec<String>> {
        let plan = self.daemon.enictl().run(&["plan", "--json"])?;
        let steps = plan.json().unwrap_or(Value::Null);
        let nothing = steps["steps"].as_array().is_some_and(Vec::is_empty);
        let said = || format!("plan: {}{}", plan.stdout, plan.stderr);
        Ok(if nothing { Vec::new() } else { vec![said()] })
    }

    /// The same, but for what enid would have to look for.
    fn wrong_unasked(&self) -> anyhow::Result<Vec<String>> {
        let mut wrong = self.targets.silent();
        let output = self.daemon.enictl().run(&["status", "--json"])?;
        let status = output.json().unwrap_or(Value::Null);
        if status["verdict"] != "converged" {
            let what = status["enis"].as_array().into_iter().flatten();
            let waiting = what.map(|eni| format!("{} {}", eni["id"], eni["waiting"]));
            let waiting: Vec<String> = waiting.collect();
            let (verdict, reason) = (&status["verdict"], &status["metadata"]["reason"]);
            let said = &output.stderr;
            wrong.push(format!("status {verdict}: metadata {reason}: {waiting:?} {said}"));
        }
        let kernel = Kernel::read(&self.instance)?;
        let attached = self.attached();
        for eni in &attached {
            match kernel.link_of(&eni.mac.to_string()) {
                Some(link) => self.wrong_at(eni, link, &kernel, &mut wrong)?,
                None => wrong.push(format!("{} has no link", eni.id)),
            }
        }
        self.leftover(&attached, &kernel, &mut wrong);
        self.wrong_ledger(&attached, &mut wrong)?;
        let lost: Vec<String> = self.foreign.difference(&kernel.foreign()).cloned().collect();
        if !lost.is_empty() {
            wrong.push(format!("what somebody else made is gone: {lost:?}"));
        }
        Ok(wrong)
    }

    /// One ENI: its link, addresses, table, and where what its addresses send leaves.
    fn wrong_at(
        &self,
        eni: &Eni,
        link: &Link,
        kernel: &Kernel,
        wrong: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        let (id, name) = (&eni.id, &link.name);
        let alone = self.others().is_empty();
        let primary = *id == self.instance.primary;
        if !link.up || (link.group != "20000" && !(primary && alone)) {
            wrong.push(format!("{name} is up: {}, in group {}", link.up, link.group));
        }
        if !primary && !link.other_names.contains(&id.0) {
            wrong.push(format!("{name} is not called {id}: {:?}", link.other_names));
        }
        let mut granted: BTreeSet<IpAddr> = addresses(eni).into_iter().collect();
        let taken = self.taken.iter().filter(|(taken, _)| taken == id);
        granted.extend(taken.map(|(_, address)| *address));
        let own = |address: &IpAddr| !is_foreign(*address) && !is_link_local(*address);
        let there: BTreeSet<IpAddr> = link.addresses.keys().copied().filter(own).collect();
        if granted != there {
            wrong.push(format!("{name} has {there:?}, {id} is granted {granted:?}"));
        }
        let table = table(eni);
        let routes: Vec<String> = kernel
            .routes()
            .filter(|(own, _)| *own == table)
            .map(|(_, route)| route["dst"].as_str().unwrap_or_default().to_owned())
            .collect();
        if !(primary && alone) {
            for net in networks(eni) {
                if !routes.contains(&net.to_string()) {
                    wrong.push(format!("table {table} of {id} lacks {net}: {routes:?}"));
                }
            }
        }
        for cidr in ["10.77.0.0/16", "100.64.0.0/16"] {
            let has = eni.vpc_v4.iter().any(|net| net.to_string() == cidr);
            if !has && routes.iter().any(|route| route == cidr) {
                wrong.push(format!("table {table} of {id} still has {cidr}"));
            }
        }
        for address in granted.iter().filter(|address| there.contains(address)) {
            let to = match address {
                IpAddr::V4(_) => IpAddr::from(self.vpc.internet_v4()),
                IpAddr::V6(_) => IpAddr::from(self.vpc.internet_v6()),
            };
            let words = ["ip", "route", "get", &to.to_string(), "from", &address.to_string()];
            let said = self.instance.output(&words)?;
            if !said.stdout.contains(&format!(" dev {name} ")) {
                let said = format!("{}{}", said.stdout, said.stderr);
                wrong.push(format!("what {address} sends does not leave by {name}: {said}"));
            }
        }
        Ok(())
    }

    /// What is enid's and belongs to no ENI that is attached.
    fn leftover(&self, attached: &[Eni], kernel: &Kernel, wrong: &mut Vec<String>) {
        let tables: BTreeSet<u32> = attached.iter().map(table).collect();
        for (table, route) in kernel.routes() {
            let at_home = table == LOCAL && self.local_prefixes;
            if !at_home && !tables.contains(&table) {
                wrong.push(format!("a route is left in table {table}: {route}"));
            }
        }
        let names: BTreeSet<&str> = kernel.links.iter().map(|link| link.name.as_str()).collect();
        for rule in kernel.rules() {
            let to = rule["table"].as_str().unwrap_or_default();
            let known =
                to == "254" || to == "main" || tables.iter().any(|own| own.to_string() == to);
            let device = rule["oif"].as_str();
            if !known || device.is_some_and(|device| !names.contains(device)) {
                wrong.push(format!("a rule is left: {rule}"));
            }
        }
        // A primary ENI that is alone needs no rules.
        let ruled = attached.iter().filter(|_| attached.len() > 1);
        let prefixes: Vec<IpNet> = ruled.flat_map(prefixes).collect();
        let forwarded = |rule: &&Value| rule["priority"] == 20_015;
        let sources: Vec<IpNet> = kernel.rules().filter(forwarded).filter_map(source).collect();
        for prefix in &prefixes {
            if !self.local_prefixes && !sources.iter().any(|source| source.contains(prefix)) {
                wrong.push(format!("no rule is there for {prefix}: {sources:?}"));
            }
        }
        for source in &sources {
            if !prefixes.iter().any(|prefix| source.contains(prefix)) {
                wrong.push(format!("a rule is left for the delegated prefix {source}"));
            }
        }
    }

    /// The ledger has exactly the addresses that enid made.
    fn wrong_ledger(&self, attached: &[Eni], wrong: &mut Vec<String>) -> anyhow::Result<()> {
        let path = self.daemon.runtime_directory().join("ledger.json");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let ledger: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let mut noted: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for (mac, list) in ledger["addresses"].as_object().into_iter().flatten() {
            let list = list.as_array().into_iter().flatten();
            let list = list.filter_map(|address| address.as_str()?.parse().ok());
            noted.insert(mac.clone(), list.collect());
        }
        for eni in attached {
            let noted = noted.remove(&eni.mac.to_string()).unwrap_or_default();
            let mut made: BTreeSet<IpAddr> = addresses(eni).into_iter().collect();
            if eni.id == self.instance.primary {
                // Whoever configured the link at boot made these.
                let six = eni.ipv6.first().map(|address| IpAddr::V6(*address));
                let four = eni.ipv4.first().map(|address| IpAddr::V4(*address));
                made.retain(|address| Some(*address) != four && Some(*address) != six);
            }
            let taken = |address: &IpAddr| self.taken.contains(&(eni.id.clone(), *address));
            let differs = noted.symmetric_difference(&made).any(|address| !taken(address));
            if differs {
                wrong.push(format!("the ledger has {noted:?} of {}, enid made {made:?}", eni.id));
            }
        }
        if !noted.is_empty() {
            wrong.push(format!("the ledger has more: {noted:?}"));
        }
        Ok(())
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// What an ENI's table must have routes to.
fn networks(eni: &Eni) -> Vec<IpNet> {
    let v4 = eni.subnet_v4.iter().chain(if eni.ipv4.is_empty() { &[] } else { &*eni.vpc_v4 });
    let v6 = eni.subnet_v6.iter().chain(&eni.vpc_v6);
    v4.map(|net| IpNet::V4(*net)).chain(v6.map(|net| IpNet::V6(*net))).collect()
}

fn prefixes(eni: &Eni) -> Vec<IpNet> {
    let v4 = eni.prefixes_v4.iter().map(|net| IpNet::V4(*net));
    v4.chain(eni.prefixes_v6.iter().map(|net| IpNet::V6(*net))).collect()
}

fn source(rule: &Value) -> Option<IpNet> {
    let from = rule["src"].as_str()?;
    let length = rule["srclen"].as_u64().unwrap_or(if from.contains(':') { 128 } else { 32 });
    format!("{from}/{length}").parse().ok()
}

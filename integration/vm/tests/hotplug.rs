//! Promise: an ENI that is hot-plugged into a running machine works a moment later, and udev names
//! it first.

use vm::{Image, Recipe, Release};

use crate::Promise;
use crate::stage::{FIRST_PUBLIC, Stage, figure, networkd};

pub(crate) fn promises() -> Vec<Promise> {
    vec![Promise {
        name: "hotplug::an_eni_that_is_plugged_in_works_and_has_its_name",
        recipe: Recipe::new(Release::Trixie),
        keep: an_eni_that_is_plugged_in_works_and_has_its_name,
    }]
}

fn an_eni_that_is_plugged_in_works_and_has_its_name(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &networkd("Name=ens5")?)?;
    stage.install()?;
    let primary = stage.ping(FIRST_PUBLIC)?;
    let took = stage.plug_second()?;
    figure("from device_add to the first answer", took);
    stage.comes_to_rest()?;
    stage.comes_to_work()?;
    stage.missed_nothing(primary, "the first ENI")
}

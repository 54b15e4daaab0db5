//! OpenMetrics in the older text format of Prometheus, which node-exporter's textfile collector reads.

/// The same metrics in that format: a counter's family has the name of its samples, an info is a gauge,
/// and neither units nor an end are told.
pub(crate) fn prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), words) => help = Some((name, words)),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                    line_of(&mut text, "HELP", name, suffix, words.unwrap_or_default());
                }
                line_of(&mut text, "TYPE", name, suffix, kind);
            }
            (Some("#"), ..) => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

fn line_of(text: &mut String, keyword: &str, name: &str, suffix: &str, rest: &str) {
    for part in ["# ", keyword, " ", name, suffix, " ", rest, "\n"] {
        text.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_kinds_and_ends_are_as_node_exporter_reads_them() {
        let openmetrics = "\
# HELP enid_passes Passes.
# TYPE enid_passes counter
enid_passes_total{verdict=\"converged\"} 7
# HELP enid_build Which enid.
# TYPE enid_build info
enid_build_info{version=\"0.1.0\"} 1
# HELP enid_metadata_age_seconds Age.
# TYPE enid_metadata_age_seconds gauge
# UNIT enid_metadata_age_seconds seconds
enid_metadata_age_seconds 3.5
# EOF
";
        assert_eq!(
            prometheus(openmetrics),
            "\
# HELP enid_passes_total Passes.
# TYPE enid_passes_total counter
enid_passes_total{verdict=\"converged\"} 7
# HELP enid_build_info Which enid.
# TYPE enid_build_info gauge
enid_build_info{version=\"0.1.0\"} 1
# HELP enid_metadata_age_seconds Age.
# TYPE enid_metadata_age_seconds gauge
enid_metadata_age_seconds 3.5
"
        );
    }
}

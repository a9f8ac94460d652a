//! One answer: metrics with their values at one moment.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;

/// Names and values that tell the samples of one metric apart.
pub type Labels = Vec<(&'static str, String)>;

/// How often a value was how large.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// All together.
    pub sum: f64,
    /// The upper end of each bucket, and how many were in it; the last ends at infinity.
    pub buckets: Vec<(f64, u64)>,
}

/// Metrics with their values at one moment.
#[derive(Debug, Default)]
pub struct Page(Vec<Metric>);

#[derive(Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    samples: Samples,
}

#[derive(Debug)]
enum Samples {
    Gauge(Vec<(Labels, i64)>),
    Counter(Vec<(Labels, u64)>),
    Histogram(Histogram),
    Histograms(Vec<(Labels, Counted)>),
    Info(Labels),
}

impl Page {
    /// What goes up and down. `help` is a sentence; a metric without samples is left out.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, i64)>,
    ) {
        let samples: Vec<_> = samples.into_iter().collect();
        if !samples.is_empty() {
            self.add(name, help, Samples::Gauge(samples));
        }
    }

    /// What only grows while the process lives. `_total` is put after the name.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        let samples: Vec<_> = samples.into_iter().collect();
        if !samples.is_empty() {
            self.add(name, help, Samples::Counter(samples));
        }
    }

    /// How often a value was how large.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, histogram: Histogram) {
        self.add(name, help, Samples::Histogram(histogram));
    }

    /// The same, of what was counted elsewhere.
    pub fn histograms(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, Counted)>,
    ) {
        let samples: Vec<_> = samples.into_iter().collect();
        if !samples.is_empty() {
            self.add(name, help, Samples::Histograms(samples));
        }
    }

    /// Which program this is: `vpc_build_info`.
    pub fn build_info(&mut self, component: &str, version: &str) {
        let labels = vec![
            ("component", component.to_owned()),
            ("version", version.to_owned()),
        ];
        let help = "The part that answers, and its version.";
        self.add("vpc_build", help, Samples::Info(labels));
    }

    fn add(&mut self, name: &'static str, help: &'static str, samples: Samples) {
        self.0.push(Metric {
            name,
            help,
            samples,
        });
    }

    /// The page in OpenMetrics' text format 1.0.0.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in &self.0 {
            let kind = match &metric.samples {
                Samples::Gauge(_) => MetricType::Gauge,
                Samples::Counter(_) => MetricType::Counter,
                Samples::Histogram(_) | Samples::Histograms(_) => MetricType::Histogram,
                Samples::Info(_) => MetricType::Info,
            };
            let mut encoder = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            match &metric.samples {
                Samples::Gauge(samples) => {
                    each(&mut encoder, samples, |encoder, value| {
                        encoder.encode_gauge(value)
                    })?;
                }
                Samples::Counter(samples) => {
                    each(&mut encoder, samples, |encoder, value| {
                        encoder.encode_counter::<NoLabelSet, _, u64>(value, None)
                    })?;
                }
                Samples::Histogram(histogram) => histogram.encode(encoder)?,
                Samples::Histograms(samples) => {
                    each(&mut encoder, samples, |encoder, counted| {
                        let Counted { sum, buckets } = counted;
                        let count = buckets.iter().map(|(_, count)| count).sum();
                        encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
                    })?;
                }
                Samples::Info(labels) => encoder.encode_info(labels)?,
            }
        }
        Ok(())
    }
}

fn each<V>(
    encoder: &mut MetricEncoder<'_>,
    samples: &[(Labels, V)],
    put: impl Fn(&mut MetricEncoder<'_>, &V) -> fmt::Result,
) -> fmt::Result {
    for (labels, value) in samples {
        match labels.as_slice() {
            [] => put(encoder, value)?,
            _ => put(&mut encoder.encode_family(labels)?, value)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_openmetrics_text() {
        let mut page = Page::default();
        page.build_info("agent", "1.2.3");
        page.gauge("vpc_rows", "Rows.", [(vec![], 3)]);
        page.gauge("vpc_nothing", "Nothing.", []);
        let labels = vec![("peer", "a\"b\\c\nd".to_owned())];
        page.counter("vpc_messages", "Messages.", [(labels, 7)]);
        let histogram = Histogram::new([0.5]);
        histogram.observe(0.25);
        page.histogram("vpc_seconds", "Time.", histogram);
        let counted = Counted {
            sum: 3.5,
            buckets: vec![(1.0, 2), (f64::INFINITY, 1)],
        };
        let labels = vec![("kind", "sync".to_owned())];
        page.histograms("vpc_disk_seconds", "IO.", [(labels, counted)]);
        let expected = r#"# HELP vpc_build The part that answers, and its version.
# TYPE vpc_build info
vpc_build_info{component="agent",version="1.2.3"} 1
# HELP vpc_rows Rows.
# TYPE vpc_rows gauge
vpc_rows 3
# HELP vpc_messages Messages.
# TYPE vpc_messages counter
vpc_messages_total{peer="a\"b\\c\nd"} 7
# HELP vpc_seconds Time.
# TYPE vpc_seconds histogram
vpc_seconds_sum 0.25
vpc_seconds_count 1
vpc_seconds_bucket{le="0.5"} 1
vpc_seconds_bucket{le="+Inf"} 1
# HELP vpc_disk_seconds IO.
# TYPE vpc_disk_seconds histogram
vpc_disk_seconds_sum{kind="sync"} 3.5
vpc_disk_seconds_count{kind="sync"} 3
vpc_disk_seconds_bucket{le="1.0",kind="sync"} 2
vpc_disk_seconds_bucket{le="+Inf",kind="sync"} 3
# EOF
"#;
        assert_eq!(page.text().unwrap(), expected);
    }
}

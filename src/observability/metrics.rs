//! Metrics: recorded anywhere by the `metrics` macros, rendered as Prometheus text for the admin listener.
//!
//! The recorder is one per process, because the macros' is; gateways that share a test process share it.

use std::{sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Upper bounds of histograms in seconds: from one wake-up of a writer to a webhook that times out.
const SECONDS: [f64; 14] =
    [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// How often histograms are folded; unread ones would grow otherwise.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

static RECORDER: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();

/// The recorder's rendering end; clones are the same.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

/// Another recorder was installed in this process, or the bucket bounds were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metrics can't be recorded: {0}")]
pub struct MetricsError(String);

impl Metrics {
    /// Installs the process's recorder, or finds the one that was installed.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn install() -> Result<Self, MetricsError> {
        let installed = RECORDER.get_or_init(|| {
            let builder = PrometheusBuilder::new().set_buckets(&SECONDS).map_err(|e| e.to_string())?;
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            metrics::set_global_recorder(recorder).map_err(|e| e.to_string())?;
            Ok(handle)
        });
        installed.clone().map(Self).map_err(MetricsError)
    }

    /// Prometheus text format, for `/metrics`.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps memory flat while nobody scrapes; runs until it is dropped.
    pub async fn upkeep(self) {
        let mut every = tokio::time::interval(UPKEEP_EVERY);
        loop {
            every.tick().await;
            self.0.run_upkeep();
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_rendered_and_installing_twice_gives_the_same() {
        let (one, two) = (Metrics::install().unwrap(), Metrics::install().unwrap());
        metrics::counter!("simcast_test_total", "kind" => "a").increment(3);
        for metrics in [one, two] {
            assert!(metrics.render().contains("simcast_test_total{kind=\"a\"} 3"), "{}", metrics.render());
        }
    }
}

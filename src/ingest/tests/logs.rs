//! What the poller writes for operators holds no number of a subscriber and no key, whatever upstream sends.

use super::{
    backfilled,
    rig::{Rig, quiet},
    *,
};
use crate::{
    globalsim::simulator::{DEFAULT_API_KEY, faults::Lists},
    observability::{captured::Captured, metrics::Metrics},
};

#[tokio::test(start_paused = true)]
async fn neither_logs_nor_metrics_hold_a_number_of_a_subscriber_or_the_key() {
    let metrics = Metrics::install().unwrap();
    let (logged, _guard) = Captured::start();
    let content = faults::Content {
        duplicate_id: 0.1,
        missing_id: 0.1,
        unknown_type: 0.1,
        extra_fields: 0.2,
        numbers_as_strings: 0.2,
        odd_timestamp: 0.2,
        ..Default::default()
    };
    let errors = faults::Errors { server_error: 0.1, too_many: 0.05, ..Default::default() };
    let transport = faults::Transport { truncate_json: 0.1, html: 0.05, ..Default::default() };
    let lists = Lists { envelope_wrong: 0.2, total: faults::Total::OffBy(-7), ..Default::default() };
    let faults = Faults { content, errors, transport, lists, ..Faults::default() };
    let rig = Rig::with(simulator::Config { faults: faults.clone(), ..quiet() }).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    for count in [1, 40, 300] {
        rig.sim.inject_burst(count);
        rig.settled().await;
    }
    rig.sim.set_api_keys(vec!["another".to_owned()]);
    run.until("refused", |status| status.state == UpstreamState::AuthFailed).await;
    let status = run.status.borrow().clone();
    run.stop().await;
    let logged = logged.text();
    assert!(
        logged.contains("requests to upstream fail") && logged.contains("refuses the API key"),
        "{logged}"
    );
    let rendered = metrics.render();
    assert!(rendered.contains("simcast_"), "{rendered}");
    let shown = format!("{:?}{}", status.message, status.quarantine.to_json());
    let numbers = rig.sim.fleet().into_iter().map(|sim| sim.msisdn);
    for personal in numbers.chain([DEFAULT_API_KEY.to_owned()]) {
        let digits = personal.trim_start_matches('+');
        for (what, text) in [("logs", &logged), ("metrics", &rendered), ("status", &shown)] {
            assert!(!text.contains(digits), "{personal} is in the {what}");
        }
    }
}

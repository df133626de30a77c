//! Spellings of what must not be reached, and of what may be.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Refused: every form of an address inside that a parser has been known to take, and every other way to get there.
const REFUSED: &str = "
http://127.0.0.1/ http://127.0.0.1:8080/ https://127.0.0.1/ http://127.1/ http://127.0.1/ http://127.255.255.255/
http://2130706433/ http://0x7f000001/ http://0x7f.0.0.1/ http://0x7F.1/ http://0177.0.0.1/ http://017700000001/
http://0177.0.0.01/ http://127.0.0.0x1/ http://0x7f.0x0.0x0.0x1/ http://0000177.0.0.1/ http://127.0.0.1./
http://%31%32%37.0.0.1/ http://127%2e0%2e0%2e1/ http://127。0。0。1/ http://127.0.0.1/ http://①②⑦.⓪.⓪.①/
http://localhost/ http://LOCALHOST/ http://localhost./ http://LocalHost:8080/x http://a.localhost/ http://a.b.localhost./
http://ｌｏｃａｌｈｏｓｔ/ http://loc%61lhost/ http://0/ http://0.0.0.0/ http://0.1.2.3/ http://00.0.0.0/ http://0x0/
http://10.0.0.1/ http://10.255.255.255/ http://10.1/ http://167772161/ http://0xa000001/ http://012.0.0.1/
http://172.16.0.1/ http://172.31.255.255/ http://0xac100001/ http://2886729729/ http://172.16.1/ http://0254.020.0.1/
http://192.168.0.1/ http://192.168.1.254/ http://192.168.257/ http://3232235521/ http://0xc0a80001/ http://0300.0250.0.1/
http://169.254.169.254/ http://169.254.169.254/latest/meta-data/ http://169.254.43518/ http://2852039166/
http://0xa9fea9fe/ http://0251.0376.0251.0376/ http://0xa9.0xfe.0xa9.0xfe/ http://169.254.0.1/ http://169.254.170.2/v2/
http://100.64.0.1/ http://100.100.100.200/ http://100.127.255.255/ http://0x64400001/
http://192.0.0.1/ http://192.0.0.192/ http://192.0.2.1/ http://192.31.196.1/ http://192.52.193.1/ http://192.88.99.1/
http://192.175.48.1/ http://198.18.0.1/ http://198.19.255.255/ http://198.51.100.7/ http://203.0.113.9/
http://224.0.0.1/ http://239.255.255.250/ http://240.0.0.1/ http://250.1.2.3/ http://255.255.255.255/ http://4294967295/
http://0xffffffff/ http://[::]/ http://[::1]/ http://[0:0:0:0:0:0:0:1]/ http://[0000::0001]/ http://[::0.0.0.1]/
http://[::127.0.0.1]/ http://[::7f00:1]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[::FFFF:127.0.0.1]/
http://[0:0:0:0:0:ffff:127.0.0.1]/ http://[::ffff:0:127.0.0.1]/ http://[::ffff:10.0.0.1]/ http://[::ffff:a00:1]/
http://[::ffff:192.168.0.1]/ http://[::ffff:c0a8:1]/ http://[::ffff:169.254.169.254]/ http://[::ffff:a9fe:a9fe]/
http://[::ffff:172.16.0.1]/ http://[::ffff:100.64.0.1]/ http://[::ffff:0.0.0.0]/ http://[::ffff:255.255.255.255]/
http://[::169.254.169.254]/ http://[64:ff9b::127.0.0.1]/ http://[64:ff9b::7f00:1]/ http://[64:ff9b::a9fe:a9fe]/
http://[64:ff9b:1::1]/ http://[64:ff9b:1:ffff::10.0.0.1]/ http://[2002:7f00:1::]/ http://[2002:a9fe:a9fe::]/
http://[2002:c0a8:1::1]/ http://[2002::1]/ http://[2001::1]/ http://[2001:0:7f00:1::]/ http://[2001:10::1]/
http://[2001:20::1]/ http://[2001:db8::1]/ http://[3fff::1]/ http://[5f00::1]/ http://[100::1]/ http://[100:0:0:1::1]/
http://[fc00::1]/ http://[fd00::1]/ http://[fd00:ec2::254]/ http://[fdff:ffff::1]/ http://[fe80::1]/ http://[fe80::a9fe:a9fe]/
http://[febf::1]/ http://[fec0::1]/ http://[feff::1]/ http://[ff02::1]/ http://[ff00::]/ http://[4000::1]/ http://[7fff::1]/
http://[200::1]/ http://[3ff:ffff::1]/ http://[400::1]/ http://[1fff::1]/ http://[8000::1]/ http://[a000::1]/ http://[c000::1]/
http://[e000::1]/ http://[f000::1]/ http://[fbff::1]/ http://[fe00::1]/
http://[2620:4f:8000::1]/ http://[fe80::1%25eth0]/ http://[fe80::1%eth0]/ http://[::1%251]/
http://user@example.com/ http://user:pass@example.com/ http://:pass@example.com/ http://example.com@127.0.0.1/
http://127.0.0.1@example.com/ http://127.0.0.1:80@example.com/ http://127.0.0.1%2523@example.com/ http://a:b@c@example.com/
http://example.com#@127.0.0.1/ http://example.com/#x http://example.com:22/ http://example.com:25/ http://example.com:0/
http://example.com:21/ http://example.com:110/ http://example.com:6000/ http://example.com:2049/ http://example.com:1023/
http://example.com:445/ http://example.com:99999/ http://example.com:6667/ http://example.com:-1/
ftp://example.com/ file:///etc/passwd gopher://127.0.0.1:6379/_INFO dict://127.0.0.1/ ldap://127.0.0.1/ data:text/plain,x
javascript:alert(1) ws://example.com/ httpx://example.com/ unix:/var/run/docker.sock http:/// http:// https://./ //example.com/
/v1/hook example.com/hook http://exa%20mple.com/ http://[::1 http://::1/ http://1.2.3.4.5/ http://256.256.256.256/
http:\\\\127.0.0.1/ http:/127.0.0.1/ http:127.0.0.1/ http:\\/\\/127.0.0.1/ http://127.0.0.1\\@example.com/ http://\t127.0.0.1/
";

const ALLOWED: [&str; 12] = [
    "https://example.com/hook",
    "http://example.com:8080/hook?token=abc",
    "https://EXAMPLE.com:443/",
    "https://bücher.example/",
    "http://8.8.8.8/",
    "http://1.1.1.1:9999/x",
    "http://172.15.255.255/",
    "http://172.32.0.1/",
    "http://100.63.255.255/",
    "http://[2606:4700::1111]/",
    "http://[::ffff:8.8.8.8]/",
    "https://localhost.example.com/",
];

fn guard() -> Guard {
    Guard::new(GuardConfig::default())
}

#[test]
fn every_spelling_of_what_lies_inside_is_refused() {
    let spellings: Vec<_> = REFUSED.split([' ', '\n']).filter(|text| !text.is_empty()).collect();
    assert!(spellings.len() >= 150, "{}", spellings.len());
    let passed: Vec<_> = spellings.iter().filter(|text| guard().check(text).is_ok()).collect();
    assert!(passed.is_empty(), "{passed:?}");
}

#[test]
fn what_everybody_can_reach_is_allowed() {
    for text in ALLOWED {
        assert!(guard().check(text).is_ok(), "{text}: {:?}", guard().check(text));
    }
    assert_eq!(DENIED_NETWORKS.len(), DENIED.len(), "every network of the table can be read");
}

#[test]
fn a_refusal_says_what_to_change() {
    let said = |text: &str| guard().check(text).unwrap_err().to_string();
    assert!(said("http://user:secret@example.com/").contains("headers"));
    assert!(!said("http://user:secret@example.com/").contains("secret"));
    assert!(said("http://example.com:22/").contains("22"));
    assert!(said("http://0x7f000001/").contains("127.0.0.1"));
    assert!(said(&format!("http://example.com/{}", "x".repeat(3_000))).contains("2048"));
}

#[test]
fn a_url_is_shown_without_its_path() {
    let url = guard().check("https://example.com/hook/secret?token=secret").unwrap();
    assert_eq!(format!("{url:?}"), "CheckedUrl(example.com:443)");
}

#[test]
fn exceptions_open_what_they_name_and_no_more() {
    let allowed_networks = vec!["127.0.0.0/8".parse().unwrap(), "fd00:1::/32".parse().unwrap()];
    let guard = Guard::new(GuardConfig { allowed_networks });
    for text in [
        "http://127.0.0.1:8080/",
        "http://localhost:8080/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fd00:1::7]/",
    ] {
        assert!(guard.check(text).is_ok(), "{text}");
    }
    let other_loopback = GuardConfig { allowed_networks: vec!["::1/128".parse().unwrap()] };
    assert!(
        Guard::new(other_loopback).check("http://localhost:8080/").is_ok(),
        "it may lead to the allowed one"
    );
    for text in ["http://10.0.0.1/", "http://[::1]/", "http://[fd00:2::7]/", "http://127.0.0.1:22/"] {
        assert!(guard.check(text).is_err(), "{text}");
    }
}

fn answering(answers: &'static [&'static [&'static str]]) -> Guard {
    let asked = AtomicUsize::new(0);
    Guard::with_lookup(
        GuardConfig::default(),
        Arc::new(move |_, port| {
            let n = asked.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1);
            let found = answers[n].iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port)).collect();
            Box::pin(async move { Ok(found) })
        }),
    )
}

#[tokio::test]
async fn a_name_that_changes_its_mind_leads_nowhere_else() {
    let guard = answering(&[&["93.184.216.34"], &["127.0.0.1"], &["10.0.0.1", "93.184.216.34", "::1"], &[]]);
    let url = guard.check("https://rebind.example/").unwrap();
    assert_eq!(guard.resolve(&url).await.unwrap(), ["93.184.216.34:443".parse().unwrap()]);
    assert!(guard.resolve(&url).await.unwrap_err().is_refusal());
    assert_eq!(
        guard.resolve(&url).await.unwrap(),
        ["93.184.216.34:443".parse().unwrap()],
        "only what is allowed"
    );
    assert!(!guard.resolve(&url).await.unwrap_err().is_refusal(), "it may be there later");
}

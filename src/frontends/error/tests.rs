//! The table holds together, and answers carry what clients need.

use super::*;

#[test]
fn the_rows_lie_in_the_order_of_the_codes_and_names_differ() {
    for (index, wire) in TABLE.iter().enumerate() {
        assert_eq!(wire.code as usize, index, "{}", wire.name);
        assert_eq!(TABLE.iter().filter(|other| other.name == wire.name).count(), 1, "{}", wire.name);
        assert_eq!(wire.code.status().as_u16(), wire.http);
    }
    assert_eq!(Code::Internal as usize + 1, TABLE.len(), "a code without a row");
}

#[test]
fn close_codes_tell_clients_what_to_do_next() {
    for wire in TABLE {
        match wire.close {
            Some(4200..=4399) => assert!(wire.retryable, "{}", wire.name),
            Some(4400..=4499) => assert!(!wire.retryable, "{}", wire.name),
            Some(other) => panic!("{} closes with {other}", wire.name),
            None => {}
        }
    }
}

#[test]
fn an_expired_cursor_says_what_can_still_be_read() {
    let cursor = |seq| Cursor { incarnation: 7, seq, tag: 0 };
    let error = ApiError::cursor_expired("too old", cursor(4), cursor(9));
    let json = error.to_json(Some("r1"));
    assert_eq!(json["oldest"], cursor(4).to_string());
    assert_eq!(json["newest"], cursor(9).to_string());
    assert_eq!(json["request_id"], "r1");
    let response = error.into_response();
    assert_eq!(response.status(), StatusCode::GONE);
}

#[test]
fn retry_after_is_rounded_up_and_401_challenges() {
    let response = ApiError::new(Code::RateLimited, "slow down")
        .retry_after(Duration::from_millis(1001))
        .into_response();
    assert_eq!(response.headers()["retry-after"], "2");
    let response = ApiError::new(Code::Unauthorized, "no token").into_response();
    assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="simcast""#);
}

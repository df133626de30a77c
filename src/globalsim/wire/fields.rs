//! Reading one field at a time out of a JSON object, without losing what can't be read.
//!
//! [`Fields`] hands a field out only as far as it is understood: what a reader does not take, or takes in a form that
//! does not reproduce its spelling, is still there in [`Fields::rest`].

use std::str::FromStr;

use serde_json::{Map, Number, Value};

use super::plmn;
use crate::event::Network;

/// An object being read.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn new(object: Map<String, Value>) -> Self {
        Self(object)
    }

    /// What nobody took.
    pub(super) fn rest(self) -> Map<String, Value> {
        self.0
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Takes a field whole; null is absent.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text, or a number as the text of its digits; empty is absent.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let found = text_of(self.0.get(name)?);
        if found.is_some() || is_nothing(self.0.get(name)?) {
            self.0.shift_remove(name);
        }
        found
    }

    /// Takes a number, or a text that holds one, with its digits.
    pub(super) fn number(&mut self, name: &str) -> Option<Number> {
        let found = number_of(self.0.get(name)?);
        self.settle(name, found.as_ref().map(ToString::to_string));
        found
    }

    /// Takes a whole number in any spelling; a spelling other than the plain one also stays.
    pub(super) fn integer(&mut self, name: &str) -> Option<i64> {
        let found = integer_of(self.0.get(name)?);
        self.settle(name, found.map(|n| n.to_string()));
        found
    }

    /// Takes a network; what it holds beyond the model stays under the same name.
    pub(super) fn network(&mut self, name: &str) -> Option<Network> {
        let Value::Object(object) = self.0.get_mut(name)? else {
            self.drop_nothing(name);
            return None;
        };
        let (network, rest) = network_of(std::mem::take(object));
        if rest.is_empty() {
            self.0.shift_remove(name);
        } else {
            self.0.insert(name.to_owned(), Value::Object(rest));
        }
        network
    }

    /// Takes an object to read it in turn; [`Fields::give_back`] returns what is left of it.
    pub(super) fn object(&mut self, name: &str) -> Option<Fields> {
        match self.0.get_mut(name)? {
            Value::Object(object) => Some(Fields(std::mem::take(object))),
            _ => {
                self.drop_nothing(name);
                None
            }
        }
    }

    pub(super) fn give_back(&mut self, name: &str, left: Fields) {
        if left.0.is_empty() {
            self.0.shift_remove(name);
        } else {
            self.0.insert(name.to_owned(), Value::Object(left.0));
        }
    }

    pub(super) fn put_if_absent(&mut self, name: &str, value: Value) {
        self.0.entry(name).or_insert(value);
    }

    /// Removes a field that was understood exactly as spelled, or that says nothing.
    fn settle(&mut self, name: &str, understood: Option<String>) {
        let Some(value) = self.0.get(name) else { return };
        let exact = understood.is_some() && text_of(value) == understood;
        if exact || is_nothing(value) {
            self.0.shift_remove(name);
        }
    }

    fn drop_nothing(&mut self, name: &str) {
        if self.0.get(name).is_some_and(is_nothing) {
            self.0.shift_remove(name);
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

/// A text, or a number as its digits.
pub(super) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A number, or a text that holds one.
pub(super) fn number_of(value: &Value) -> Option<Number> {
    match value {
        Value::Number(number) => Some(number.clone()),
        Value::String(text) => Number::from_str(text.trim()).ok(),
        _ => None,
    }
}

/// A whole number, however spelled: `-65`, `"-65"`, `-65.0`.
pub(super) fn integer_of(value: &Value) -> Option<i64> {
    let text = number_of(value)?.to_string();
    text.parse().ok().or_else(|| {
        // Above 2^53 a float no longer tells one integer from the next.
        let float: f64 = text.parse().ok()?;
        (float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0).then_some(float as i64)
    })
}

/// A count: a whole number that is not negative.
pub(super) fn count_of(value: Option<&Value>) -> Option<u64> {
    value.and_then(integer_of).and_then(|n| u64::try_from(n).ok())
}

/// A network and what the object holds beyond it. No network where none of its fields is there.
pub(super) fn network_of(object: Map<String, Value>) -> (Option<Network>, Map<String, Value>) {
    let mut fields = Fields::new(object);
    let mut network = Network {
        country: fields.text("country"),
        country_code: fields.text("country_code"),
        operator: fields.text("operator"),
        network_code: fields.text("network_code"),
        mcc: fields.text("mcc"),
        mnc: fields.text("mnc"),
        network_type: fields.text("network_type"),
    };
    complete(&mut network);
    let found = network != Network::default();
    (found.then_some(network), fields.rest())
}

/// Fills in what follows from the codes.
pub(super) fn complete(network: &mut Network) {
    if let Some((mcc, mnc)) = network.network_code.as_deref().and_then(plmn::split) {
        network.mcc.get_or_insert_with(|| mcc.to_owned());
        if let Some(mnc) = mnc.filter(|_| network.mcc.as_deref() == Some(mcc)) {
            network.mnc.get_or_insert_with(|| mnc.to_owned());
        }
    }
    if network.country_code.is_none() {
        network.country_code = network.mcc.as_deref().and_then(plmn::country_code).map(str::to_owned);
    }
}

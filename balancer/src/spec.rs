//! An instance as people write it: `HOST:PORT[,weight=N][,max=N][,drain]`, or a table of the configuration file.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

/// A server behind the balancer, as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instance {
    /// `HOST:PORT`. A name is looked up again and again; all of its addresses are tried.
    pub address: String,
    /// How much it gets beside the others, 1 to 1000. Default 1.
    pub weight: u32,
    /// Connections at once; more go elsewhere. Default: no limit.
    pub max: Option<usize>,
    /// It gets no new connections, and what it has is cut after `drain-timeout`. Default `false`.
    pub drain: bool,
}

/// The greatest weight.
pub(crate) const MAX_WEIGHT: u32 = 1000;

/// Text that is no instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no instance: {what}; write HOST:PORT[,weight=N][,max=N][,drain], for example 127.0.0.1:8886,weight=2"
)]
pub struct InstanceError {
    text: String,
    what: String,
}

impl Instance {
    /// An instance with the defaults.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), weight: 1, max: None, drain: false }
    }

    /// Host and port apart. `None`: it is not written so.
    pub(crate) fn parts(&self) -> Option<(&str, u16)> {
        let (host, port) = self.address.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        let named = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control());
        port.parse().ok().filter(|port| named && *port > 0).map(|port| (host, port))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl FromStr for Instance {
    type Err = InstanceError;

    /// ```
    /// use ringpost_balancer::Instance;
    /// let instance: Instance = "localhost:8886,weight=2,max=100".parse()?;
    /// assert_eq!((instance.weight, instance.max), (2, Some(100)));
    /// # Ok::<(), ringpost_balancer::InstanceError>(())
    /// ```
    fn from_str(text: &str) -> Result<Self, InstanceError> {
        let error = |what: String| InstanceError { text: text.to_owned(), what };
        let mut words = text.split(',').map(str::trim);
        let mut instance = Self::new(words.next().unwrap_or_default());
        if instance.parts().is_none() {
            return Err(error(format!("`{}` is no HOST:PORT", instance.address)));
        }
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, "true"));
            let number = || error(format!("`{word}` has no number that can be meant"));
            match key {
                "weight" => instance.weight = value.parse().map_err(|_| number())?,
                "max" => instance.max = Some(value.parse().map_err(|_| number())?),
                "drain" => {
                    instance.drain =
                        value.parse().map_err(|_| error("`drain` is true or false".to_owned()))?;
                }
                _ => return Err(error(format!("`{key}` is not known"))),
            }
        }
        instance.check().map_err(error)?;
        Ok(instance)
    }
}

impl Instance {
    /// Checks the values; what is wrong, if something is.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.parts().is_none() {
            return Err(format!("`{}` is no HOST:PORT", self.address));
        }
        if !(1..=MAX_WEIGHT).contains(&self.weight) {
            return Err(format!("weight = {}: must be 1 to {MAX_WEIGHT}", self.weight));
        }
        if self.max == Some(0) {
            return Err("max = 0: must be at least 1; `drain` keeps connections away".to_owned());
        }
        Ok(())
    }
}

/// The table's form.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Table {
    address: String,
    #[serde(default = "one")]
    weight: u32,
    max: Option<usize>,
    #[serde(default)]
    drain: bool,
}

fn one() -> u32 {
    1
}

impl<'de> Deserialize<'de> for Instance {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Instance;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an instance: \"HOST:PORT,weight=N\", or a table with `address`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Instance, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Instance, A::Error> {
                let Table { address, weight, max, drain } =
                    Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Instance { address, weight, max, drain })
            }
        }
        from.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every notation of an address and of what follows it is read.
    #[test]
    fn reads_instances() {
        let parts = |text: &str| {
            let instance: Instance = text.parse().unwrap();
            instance.parts().map(|(host, port)| (host.to_owned(), port)).unwrap()
        };
        assert_eq!(parts("localhost:8886"), ("localhost".to_owned(), 8886));
        assert_eq!(parts("[::1]:1, weight=3"), ("::1".to_owned(), 1));
        let instance: Instance = "a:1,weight=3,max=5,drain".parse().unwrap();
        assert_eq!((instance.weight, instance.max, instance.drain), (3, Some(5), true));
        assert!(!"a:1,drain=false".parse::<Instance>().unwrap().drain);
    }

    /// What is wrong is named, with how it should be.
    #[test]
    fn bad_instances() {
        for (text, expected) in [
            ("", "no HOST:PORT"),
            ("localhost", "no HOST:PORT"),
            ("localhost:0", "no HOST:PORT"),
            (":80", "no HOST:PORT"),
            ("::1:80", "no HOST:PORT"),
            ("a b:80", "no HOST:PORT"),
            ("a:1,weight=0", "must be 1 to 1000"),
            ("a:1,weight=many", "has no number"),
            ("a:1,max=0", "at least 1"),
            ("a:1,color=red", "`color` is not known"),
            ("a:1,drain=maybe", "true or false"),
        ] {
            let error = text.parse::<Instance>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("weight=2"), "{error}");
        }
    }
}

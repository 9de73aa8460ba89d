//! Services as the operator writes them: `tcp/5432`, `udp/1000-2000 from 53`, `icmp/8`,
//! `ip/47`, `ether/0x88cc`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::packet::proto;

/// Ports `low` to `high`, both included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRange {
    /// First.
    pub low: u16,
    /// Last.
    pub high: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: PortRange = PortRange {
        low: 0,
        high: u16::MAX,
    };

    /// Just this one.
    #[must_use]
    pub const fn one(port: u16) -> Self {
        PortRange {
            low: port,
            high: port,
        }
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub const fn contains(&self, port: u16) -> bool {
        self.low <= port && port <= self.high
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high {
            write!(f, "{}", self.low)
        } else {
            write!(f, "{}-{}", self.low, self.high)
        }
    }
}

/// One service of a rule. A rule without services means every IP service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ServiceSpec {
    /// An IP protocol. For ICMP and ICMPv6 `dport` holds `type << 8 | code`; a protocol without
    /// ports has both ranges [`PortRange::ALL`].
    Ip {
        /// IP protocol number.
        protocol: u8,
        /// Destination ports.
        dport: PortRange,
        /// Source ports.
        sport: PortRange,
    },
    /// Frames that are neither IP nor ARP, by EtherType.
    Ether(u16),
}

impl ServiceSpec {
    /// A whole protocol.
    #[must_use]
    pub const fn protocol(protocol: u8) -> Self {
        ServiceSpec::Ip {
            protocol,
            dport: PortRange::ALL,
            sport: PortRange::ALL,
        }
    }

    /// One TCP port.
    #[must_use]
    pub const fn tcp(port: u16) -> Self {
        ServiceSpec::Ip {
            protocol: proto::TCP,
            dport: PortRange::one(port),
            sport: PortRange::ALL,
        }
    }

    /// One UDP port.
    #[must_use]
    pub const fn udp(port: u16) -> Self {
        ServiceSpec::Ip {
            protocol: proto::UDP,
            dport: PortRange::one(port),
            sport: PortRange::ALL,
        }
    }

    /// One ICMPv6 type, every code.
    #[must_use]
    pub const fn icmpv6(kind: u8) -> Self {
        ServiceSpec::Ip {
            protocol: proto::ICMPV6,
            dport: icmp_type(kind),
            sport: PortRange::ALL,
        }
    }
}

const fn icmp_type(kind: u8) -> PortRange {
    PortRange {
        low: (kind as u16) << 8,
        high: (kind as u16) << 8 | 0xff,
    }
}

impl fmt::Display for ServiceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ServiceSpec::Ether(ethertype) => write!(f, "ether/{ethertype:#06x}"),
            ServiceSpec::Ip {
                protocol,
                dport,
                sport,
            } => {
                match protocol {
                    proto::TCP => f.write_str("tcp")?,
                    proto::UDP => f.write_str("udp")?,
                    proto::SCTP => f.write_str("sctp")?,
                    proto::ICMP => f.write_str("icmp")?,
                    proto::ICMPV6 => f.write_str("icmpv6")?,
                    other => write!(f, "ip/{other}")?,
                }
                if dport != PortRange::ALL {
                    if matches!(protocol, proto::ICMP | proto::ICMPV6) {
                        write!(f, "/{}", dport.low >> 8)?;
                        if dport.low == dport.high {
                            write!(f, "/{}", dport.low & 0xff)?;
                        }
                    } else {
                        write!(f, "/{dport}")?;
                    }
                }
                if sport != PortRange::ALL {
                    write!(f, " from {sport}")?;
                }
                Ok(())
            }
        }
    }
}

impl Serialize for ServiceSpec {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Why a text is not a service.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadService(String);

impl FromStr for ServiceSpec {
    type Err = BadService;

    fn from_str(text: &str) -> Result<Self, BadService> {
        let (what, from) = match text.split_once(" from ") {
            Some((what, from)) => (what.trim_end(), Some(from.trim())),
            None => (text, None),
        };
        let (name, rest) = match what.split_once('/') {
            Some((name, rest)) => (name, Some(rest)),
            None => (what, None),
        };
        let protocol = match name {
            "tcp" => proto::TCP,
            "udp" => proto::UDP,
            "sctp" => proto::SCTP,
            "icmp" | "icmpv6" | "ip" | "ether" if from.is_some() => {
                return Err(BadService(format!("{name} has no source ports")));
            }
            "icmp" => return icmp(proto::ICMP, rest),
            "icmpv6" => return icmp(proto::ICMPV6, rest),
            "ip" => {
                let number = rest.ok_or_else(|| {
                    BadService("ip needs a protocol number, as in ip/47".to_owned())
                })?;
                return Ok(ServiceSpec::protocol(byte(number, "protocol")?));
            }
            "ether" => return ether(rest),
            other => return Err(BadService(format!("unknown protocol {other:?}"))),
        };
        Ok(ServiceSpec::Ip {
            protocol,
            dport: rest.map_or(Ok(PortRange::ALL), ports)?,
            sport: from.map_or(Ok(PortRange::ALL), ports)?,
        })
    }
}

/// Decimal digits only: `parse` alone would take "+5".
fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn byte(text: &str, what: &str) -> Result<u8, BadService> {
    text.parse()
        .ok()
        .filter(|_| digits(text))
        .ok_or_else(|| BadService(format!("{what} {text:?} is not a number from 0 to 255")))
}

fn port(text: &str) -> Result<u16, BadService> {
    text.parse()
        .ok()
        .filter(|_| digits(text))
        .ok_or_else(|| BadService(format!("port {text:?} is not a number from 0 to 65535")))
}

fn ports(text: &str) -> Result<PortRange, BadService> {
    let (low, high) = match text.split_once('-') {
        Some((low, high)) => (port(low)?, port(high)?),
        None => (port(text)?, port(text)?),
    };
    if low > high {
        return Err(BadService(format!("port range {text} runs backwards")));
    }
    Ok(PortRange { low, high })
}

fn icmp(protocol: u8, rest: Option<&str>) -> Result<ServiceSpec, BadService> {
    let dport = match rest.map(|rest| {
        rest.split_once('/')
            .map_or((rest, None), |(t, c)| (t, Some(c)))
    }) {
        None => PortRange::ALL,
        Some((kind, None)) => icmp_type(byte(kind, "ICMP type")?),
        Some((kind, Some(code))) => PortRange::one(
            u16::from(byte(kind, "ICMP type")?) << 8 | u16::from(byte(code, "ICMP code")?),
        ),
    };
    Ok(ServiceSpec::Ip {
        protocol,
        dport,
        sport: PortRange::ALL,
    })
}

/// Smallest EtherType; below are lengths (IEEE 802.3 clause 3.2.6).
const MIN_ETHERTYPE: u16 = 0x0600;

fn ether(rest: Option<&str>) -> Result<ServiceSpec, BadService> {
    use crate::packet::ethertype::{ARP, IPV4, IPV6, QINQ, VLAN};
    let text = rest.unwrap_or("");
    let value = text
        .strip_prefix("0x")
        .filter(|hex| !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|hex| u16::from_str_radix(hex, 16).ok())
        .ok_or_else(|| BadService("ether needs an EtherType, as in ether/0x88cc".to_owned()))?;
    match value {
        IPV4 | IPV6 => Err(BadService("IP is not judged by its EtherType".to_owned())),
        ARP => Err(BadService(
            "ARP is answered by the switch and needs no rule".to_owned(),
        )),
        VLAN | QINQ => Err(BadService(
            "a VLAN tag is looked through, not judged".to_owned(),
        )),
        short if short < MIN_ETHERTYPE => Err(BadService(format!(
            "{text} is a length, not an EtherType (those start at 0x0600)"
        ))),
        value => Ok(ServiceSpec::Ether(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_and_prints_the_same() {
        for text in [
            "tcp",
            "tcp/5432",
            "tcp/1000-2000",
            "udp/53",
            "udp/53 from 1024-65535",
            "tcp from 20",
            "sctp/36412",
            "icmp",
            "icmp/8",
            "icmp/3/4",
            "icmpv6/134",
            "ip/47",
            "ether/0x88cc",
        ] {
            let spec: ServiceSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        assert_eq!("ip/6".parse(), "tcp".parse::<ServiceSpec>());
        assert_eq!("tcp/5432".parse(), Ok(ServiceSpec::tcp(5432)));
    }

    #[test]
    fn what_is_not_a_service_says_why() {
        for (text, why) in [
            ("tpc/80", "unknown protocol \"tpc\""),
            ("tcp/", "port \"\" is not a number from 0 to 65535"),
            (
                "tcp/65536",
                "port \"65536\" is not a number from 0 to 65535",
            ),
            ("tcp/+5", "port \"+5\" is not a number from 0 to 65535"),
            ("tcp/90-80", "port range 90-80 runs backwards"),
            (
                "icmp/256",
                "ICMP type \"256\" is not a number from 0 to 255",
            ),
            ("icmp from 5", "icmp has no source ports"),
            ("ip", "ip needs a protocol number, as in ip/47"),
            ("ether/88cc", "ether needs an EtherType, as in ether/0x88cc"),
            ("ether/0x0800", "IP is not judged by its EtherType"),
            (
                "ether/0x05dc",
                "0x05dc is a length, not an EtherType (those start at 0x0600)",
            ),
        ] {
            assert_eq!(
                text.parse::<ServiceSpec>().unwrap_err().to_string(),
                why,
                "{text}"
            );
        }
    }
}

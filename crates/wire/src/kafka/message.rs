//! One definition per message gives its type, its decoder and its encoder in every version.
//!
//! A message is a struct whose fields each name the versions that carry them. Outside these a field has its default.
//! The definitions read like Kafka's own schemas, so they can be compared with them line by line:
//!
//! ```text
//! message! {
//!     pub struct ProduceRequest {
//!         transactional_id: Option<String>, 3..;
//!         acks: i16, 0..;
//!     }
//! }
//! ```
//!
//! `Debug` prints only what differs from the default, which keeps transcripts short.

use std::fmt;

use bytes::Bytes;

use super::{
    read::{DecodeError, Reader},
    write::Writer,
};

/// A value that can stand in a message.
pub trait Field: Sized {
    /// # Errors
    /// When the bytes are not such a value; `what` is the field's name.
    fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError>;
    fn write(&self, w: &mut Writer);
}

macro_rules! number {
    ($($type:ty: $name:ident)*) => {$(
        impl Field for $type {
            fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError> {
                r.$name(what)
            }
            fn write(&self, w: &mut Writer) {
                w.$name(*self);
            }
        }
    )*};
}

number!(i16: i16  i32: i32  i64: i64);

impl Field for i8 {
    fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError> {
        r.u8(what).map(|v| v as i8)
    }
    fn write(&self, w: &mut Writer) {
        w.u8(*self as u8);
    }
}

impl Field for bool {
    fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError> {
        match r.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Bool { what, value }),
        }
    }
    fn write(&self, w: &mut Writer) {
        w.u8((*self).into());
    }
}

impl Field for String {
    fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError> {
        r.nullable_string(what)?.ok_or(DecodeError::Null(what))
    }
    fn write(&self, w: &mut Writer) {
        w.nullable_string(Some(self));
    }
}

impl Field for Option<String> {
    fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError> {
        r.nullable_string(what)
    }
    fn write(&self, w: &mut Writer) {
        w.nullable_string(self.as_deref());
    }
}

/// Opaque bytes, which share the frame's memory: whoever keeps them for long copies them.
impl Field for Bytes {
    fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError> {
        r.nullable_bytes(what)?.ok_or(DecodeError::Null(what))
    }
    fn write(&self, w: &mut Writer) {
        w.nullable_bytes(Some(self));
    }
}

impl<T: Field> Field for Vec<T> {
    fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError> {
        r.nullable_array(what)?.ok_or(DecodeError::Null(what))
    }
    fn write(&self, w: &mut Writer) {
        w.nullable_array(Some(self), |w, item| item.write(w));
    }
}

impl<T: Field> Field for Option<Vec<T>> {
    fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError> {
        r.nullable_array(what)
    }
    fn write(&self, w: &mut Writer) {
        w.nullable_array(self.as_deref(), |w, item| item.write(w));
    }
}

/// A topic's UUID; all zeros where there is none.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    pub fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl Field for Uuid {
    fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError> {
        let raw = r.take(16, what)?;
        Ok(Self(raw[..].try_into().expect("sixteen bytes were taken")))
    }
    fn write(&self, w: &mut Writer) {
        w.raw(&self.0);
    }
}

/// A set of record batches, as chunks that are sent from where they lie. Null reads as empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Records(pub Vec<Bytes>);

impl Records {
    pub fn size(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// All of it in one piece, without copying where it is one already.
    pub fn concat(&self) -> Bytes {
        match &self.0[..] {
            [one] => one.clone(),
            many => many.concat().into(),
        }
    }
}

impl From<Bytes> for Records {
    fn from(bytes: Bytes) -> Self {
        Self(vec![bytes])
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.size())
    }
}

impl Field for Records {
    fn read(r: &mut Reader, what: &'static str) -> Result<Self, DecodeError> {
        Ok(Self(r.nullable_bytes(what)?.filter(|b| !b.is_empty()).into_iter().collect()))
    }
    fn write(&self, w: &mut Writer) {
        w.chunks(&self.0);
    }
}

/// Defines a message or a part of one. See the module's documentation.
macro_rules! message {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* $field:ident: $type:ty, $versions:expr $(, $default:expr)?; )*
        }
        $( tagged { $( $(#[$tag_meta:meta])* $tag:literal => $tag_field:ident: $tag_type:ty, $tag_versions:expr; )* } )?
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
            $( $( $(#[$tag_meta])* pub $tag_field: $tag_type, )* )?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $( $field: message!(@default $($default)?), )*
                    $( $( $tag_field: Default::default(), )* )?
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let unset = Self::default();
                let _ = &unset;
                let mut out = f.debug_struct(stringify!($name));
                $( if self.$field != unset.$field { out.field(stringify!($field), &self.$field); } )*
                $( $( if self.$tag_field != unset.$tag_field {
                    out.field(stringify!($tag_field), &self.$tag_field);
                } )* )?
                out.finish()
            }
        }

        impl $crate::kafka::message::Field for $name {
            #[allow(unused_mut, clippy::manual_range_contains)]
            fn read(
                r: &mut $crate::kafka::read::Reader,
                _what: &'static str,
            ) -> Result<Self, $crate::kafka::read::DecodeError> {
                let mut message = Self::default();
                $( if ($versions).contains(&r.version()) {
                    message.$field = $crate::kafka::message::Field::read(r, stringify!($field))?;
                } )*
                r.tagged_fields(|_r, tag| {
                    let _ = tag;
                    $( $( if tag == $tag && ($tag_versions).contains(&_r.version()) {
                        message.$tag_field = $crate::kafka::message::Field::read(_r, stringify!($tag_field))?;
                        return Ok(true);
                    } )* )?
                    Ok(false)
                })?;
                Ok(message)
            }

            fn write(&self, w: &mut $crate::kafka::write::Writer) {
                $( if ($versions).contains(&w.version()) {
                    $crate::kafka::message::Field::write(&self.$field, w);
                } )*
                #[allow(unused_mut)]
                let mut tagged: Vec<(u32, bytes::Bytes)> = Vec::new();
                $( $( if w.flexible() && ($tag_versions).contains(&w.version())
                    && self.$tag_field != <$tag_type as Default>::default()
                {
                    tagged.push(($tag, w.nested(|w| $crate::kafka::message::Field::write(&self.$tag_field, w))));
                } )* )?
                w.tagged_fields(&tagged);
            }
        }
    )*};
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
}

pub(super) use message;

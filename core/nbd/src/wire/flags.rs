//! Fields of flags ("Flag fields").

use std::fmt;
use std::ops::BitOr;

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident: $bits:ty { $($(#[$flag_doc:meta])* $flag:ident = $bit:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(
            /// As on the wire.
            pub $bits,
        );

        impl $name {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)*

            /// Whether all of these are set.
            pub const fn contains(self, others: Self) -> bool {
                self.0 & others.0 == others.0
            }

            /// Those that are not among these.
            pub const fn without(self, others: Self) -> Self {
                Self(self.0 & !others.0)
            }

            /// These if `so`, none if not.
            pub const fn only_if(self, so: bool) -> Self {
                if so { self } else { Self::NONE }
            }

            /// Whether no flag is set.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }
        }

        impl BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut left = *self;
                let mut names = Vec::new();
                $(if self.contains(Self::$flag) {
                    left = left.without(Self::$flag);
                    names.push(stringify!($flag).to_owned());
                })*
                if !left.is_empty() || names.is_empty() {
                    names.push(format!("{:#x}", left.0));
                }
                f.write_str(&names.join("|"))
            }
        }
    };
}

flags! {
    /// What a server can do in the handshake.
    HandshakeFlags: u16 {
        /// `NBD_FLAG_FIXED_NEWSTYLE`: options are answered.
        FIXED_NEWSTYLE = 0,
        /// `NBD_FLAG_NO_ZEROES`: the padding after an export's size and flags can be left out.
        NO_ZEROES = 1,
    }
}

flags! {
    /// What of it a client wants.
    ClientFlags: u32 {
        /// `NBD_FLAG_C_FIXED_NEWSTYLE`.
        FIXED_NEWSTYLE = 0,
        /// `NBD_FLAG_C_NO_ZEROES`.
        NO_ZEROES = 1,
    }
}

flags! {
    /// What may be asked of an export.
    TransmissionFlags: u16 {
        /// `NBD_FLAG_HAS_FLAGS`: always set.
        HAS_FLAGS = 0,
        /// `NBD_FLAG_READ_ONLY`.
        READ_ONLY = 1,
        /// `NBD_FLAG_SEND_FLUSH`.
        SEND_FLUSH = 2,
        /// `NBD_FLAG_SEND_FUA`.
        SEND_FUA = 3,
        /// `NBD_FLAG_ROTATIONAL`.
        ROTATIONAL = 4,
        /// `NBD_FLAG_SEND_TRIM`.
        SEND_TRIM = 5,
        /// `NBD_FLAG_SEND_WRITE_ZEROES`.
        SEND_WRITE_ZEROES = 6,
        /// `NBD_FLAG_SEND_DF`.
        SEND_DF = 7,
        /// `NBD_FLAG_CAN_MULTI_CONN`.
        CAN_MULTI_CONN = 8,
        /// `NBD_FLAG_SEND_CACHE`.
        SEND_CACHE = 10,
        /// `NBD_FLAG_SEND_FAST_ZERO`.
        SEND_FAST_ZERO = 11,
    }
}

flags! {
    /// How a request is to be carried out.
    CommandFlags: u16 {
        /// `NBD_CMD_FLAG_FUA`: answered when what it wrote is on permanent storage.
        FUA = 0,
        /// `NBD_CMD_FLAG_NO_HOLE`: zeroes stay allocated.
        NO_HOLE = 1,
        /// `NBD_CMD_FLAG_DF`: what is read comes as one chunk.
        DF = 2,
        /// `NBD_CMD_FLAG_REQ_ONE`: one extent is enough.
        REQ_ONE = 3,
        /// `NBD_CMD_FLAG_FAST_ZERO`: fail at once if zeroes are no faster than a write.
        FAST_ZERO = 4,
    }
}

flags! {
    /// What `base:allocation` says of an extent.
    StateFlags: u32 {
        /// `NBD_STATE_HOLE`: nothing is allocated there.
        HOLE = 0,
        /// `NBD_STATE_ZERO`: it reads as zeroes.
        ZERO = 1,
    }
}

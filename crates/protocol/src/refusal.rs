//! Why a credential (an assignment, a ticket, a sealed state) was refused.
//!
//! One list for all three, so that answers, logs and metrics of every implementation use the same words.

/// Why a credential was refused. Nothing of a refused one may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[error("refused the credential: {}", self.reason())]
pub enum Refusal {
    /// There is none.
    Missing,
    /// Longer than one of ours can be; nothing of it was read.
    TooLong,
    /// Not in the form of one of ours: parts, base64url, JSON, a claim that is absent or of another type.
    Malformed,
    /// Another algorithm than the one we use, `none` included.
    Algorithm,
    /// Its key is none of the two live ones: it is old, or from elsewhere.
    UnknownKey,
    /// It is for another server, or for another life of this one.
    OtherServer,
    /// The signature does not fit: forged, altered, or of another fleet.
    Signature,
    /// It claims to live longer than we make any.
    TooLongLived,
    /// It was made later than now.
    NotYet,
    /// Its time is over.
    Expired,
    /// It is for another path.
    Path,
    /// It is for another origin, or one of both has none.
    Origin,
    /// It is of another session or move.
    OtherMove,
    /// It was used before.
    Replayed,
    /// No room to remember that it was used; forgetting a live one instead would let that one in twice.
    ReplayFull,
}

impl Refusal {
    /// Every refusal, for tables and tests.
    pub const ALL: [Self; 15] = [
        Self::Missing,
        Self::TooLong,
        Self::Malformed,
        Self::Algorithm,
        Self::UnknownKey,
        Self::OtherServer,
        Self::Signature,
        Self::TooLongLived,
        Self::NotYet,
        Self::Expired,
        Self::Path,
        Self::Origin,
        Self::OtherMove,
        Self::Replayed,
        Self::ReplayFull,
    ];

    /// Short code for answers (`why`), logs and metrics.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::OtherServer => "other_server",
            Self::Signature => "signature",
            Self::TooLongLived => "too_long_lived",
            Self::NotYet => "not_yet",
            Self::Expired => "expired",
            Self::Path => "path",
            Self::Origin => "origin",
            Self::OtherMove => "other_move",
            Self::Replayed => "replayed",
            Self::ReplayFull => "replay_full",
        }
    }
}

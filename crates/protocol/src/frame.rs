//! Follows WebSocket frame headers in a stream of bytes it never changes, and writes Close frames.
//!
//! In: one direction's bytes, cut anywhere. Out: whether the stream stands between two messages, so that a
//! Close may be put in; whether the peer's own Close went by, and its code. Invariants: no allocation, at most
//! 14 header bytes looked at per frame, the same state for the same bytes however they are cut.
//! Elsewhere: deciding to close (`fleet`), the sockets (`gateway::tunnel`), judging frames (the two ends do;
//! reserved bits and opcodes pass as they are).

/// Which end wrote a frame. Frames of a client are masked (RFC 6455 §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The user's end.
    Client,
    /// The WebSocket server.
    Server,
}

const OPCODE_CLOSE: u8 = 8;
const FIRST_CONTROL: u8 = 8;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const NO_CODE: u16 = 1005;

/// Header follower for one direction of one tunnel. 32 bytes, no allocation.
#[derive(Debug, Clone, Default)]
pub struct FrameTracker {
    /// Payload bytes of the current frame that are still to come; while in a header, its length so far.
    left: u64,
    /// Mask of the first two payload bytes, for the code of a Close.
    mask: [u8; 2],
    close_code: u16,
    /// Payload bytes of a Close seen so far, at most 2.
    close_read: u8,
    /// First header byte: FIN and opcode.
    first: u8,
    /// Header bytes read; 0 between frames or in a payload.
    read: u8,
    /// Header length, known after two bytes.
    header: u8,
    masked: bool,
    in_message: bool,
    state: Follow,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Follow {
    #[default]
    Frames,
    /// The sender's Close is complete; nothing it sends counts any more.
    Closed,
    /// A length with its top bit set (RFC 6455 §5.2 forbids it): where frames begin is unknown from here on.
    Lost,
}

impl FrameTracker {
    /// Follows all of `bytes`.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.step(rest);
            rest = &rest[taken..];
        }
    }

    /// Follows `bytes` up to the first place between two messages and says how many bytes that took. `None`:
    /// all of `bytes` was followed and a message is still under way. Being there already takes 0 bytes.
    pub fn feed_to_boundary(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while !self.between_messages() {
            if at == bytes.len() {
                return None;
            }
            at += self.step(&bytes[at..]);
        }
        Some(at)
    }

    /// Whether a frame of ours may follow here without cutting a message or a frame. Never after the sender's
    /// own Close, and never again once the stream could not be followed.
    #[must_use]
    pub fn between_messages(&self) -> bool {
        self.between_frames() && !self.in_message
    }

    /// Whether a control frame may follow here: between two frames, perhaps within a fragmented message.
    #[must_use]
    pub fn between_frames(&self) -> bool {
        self.state == Follow::Frames && self.read == 0 && self.left == 0
    }

    /// The code of the sender's complete Close frame: 1005 if it carried none.
    #[must_use]
    pub fn closed(&self) -> Option<u16> {
        (self.state == Follow::Closed).then_some(if self.close_read < 2 { NO_CODE } else { self.close_code })
    }

    /// Takes the next piece of `bytes` (not empty): the rest of a header or of a payload. Says its length.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.state != Follow::Frames {
            return bytes.len();
        }
        if self.read == 0 && self.left > 0 {
            return self.payload(bytes);
        }
        if self.read == 0
            && let Some(taken) = self.whole_short_header(bytes)
        {
            return taken;
        }
        self.header_byte(bytes[0]);
        1
    }

    /// The usual case in one look: the whole header of a frame of at most 125 bytes.
    fn whole_short_header(&mut self, bytes: &[u8]) -> Option<usize> {
        let second = *bytes.get(1)?;
        let length = second & 0x7f;
        let header = if second & MASKED == 0 { 2 } else { 6 };
        if length > 125 || bytes.len() < header {
            return None;
        }
        self.first = bytes[0];
        self.masked = second & MASKED != 0;
        if self.masked {
            self.mask = [bytes[2], bytes[3]];
        }
        self.left = u64::from(length);
        self.header_done();
        Some(header)
    }

    fn header_byte(&mut self, byte: u8) {
        match self.read {
            0 => self.first = byte,
            1 => self.second_byte(byte),
            at => self.later_byte(at, byte),
        }
        self.read += 1;
        if self.read >= 2 && self.read == self.header {
            self.read = 0;
            self.header_done();
        }
    }

    fn second_byte(&mut self, byte: u8) {
        self.masked = byte & MASKED != 0;
        let (length, extended) = match byte & 0x7f {
            126 => (0, 2),
            127 => (0, 8),
            short => (u64::from(short), 0),
        };
        self.left = length;
        self.header = 2 + extended + if self.masked { 4 } else { 0 };
    }

    fn later_byte(&mut self, at: u8, byte: u8) {
        let length_end = self.header - if self.masked { 4 } else { 0 };
        if at < length_end {
            self.left = self.left << 8 | u64::from(byte);
        } else if let Some(mask) = self.mask.get_mut(usize::from(at - length_end)) {
            *mask = byte;
        }
    }

    fn header_done(&mut self) {
        if self.left > i64::MAX as u64 {
            self.state = Follow::Lost;
        } else if self.left == 0 {
            self.frame_done();
        }
    }

    fn payload(&mut self, bytes: &[u8]) -> usize {
        let taken = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        if self.first & 0x0f == OPCODE_CLOSE {
            self.read_close_code(&bytes[..taken]);
        }
        self.left -= taken as u64;
        if self.left == 0 {
            self.frame_done();
        }
        taken
    }

    fn read_close_code(&mut self, payload: &[u8]) {
        for byte in payload.iter().take(2usize.saturating_sub(usize::from(self.close_read))) {
            let mask = if self.masked { self.mask[usize::from(self.close_read)] } else { 0 };
            self.close_code = self.close_code << 8 | u16::from(byte ^ mask);
            self.close_read += 1;
        }
    }

    fn frame_done(&mut self) {
        let opcode = self.first & 0x0f;
        if opcode == OPCODE_CLOSE {
            self.state = Follow::Closed;
        } else if opcode < FIRST_CONTROL {
            self.in_message = self.first & FIN == 0;
        }
    }
}

/// Longest reason a Close frame can carry: 125 bytes of payload less the code.
pub const REASON_MAX: usize = 123;
/// Longest Close frame: header, mask, code and reason.
pub const CLOSE_FRAME_MAX: usize = 2 + 4 + 2 + REASON_MAX;

/// Writes a Close frame as `sender` would. `reason` is cut at a character's end to [`REASON_MAX`] bytes.
///
/// A client's frame is masked with `mask`; a server's is not and `mask` is not used. We know both ends' bytes,
/// so the mask guards nothing here and may be any number.
#[must_use]
pub fn close_frame(sender: Sender, code: u16, reason: &str, mask: [u8; 4]) -> Vec<u8> {
    let mut end = reason.len().min(REASON_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = Vec::with_capacity(2 + end);
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    let mut frame = Vec::with_capacity(CLOSE_FRAME_MAX);
    frame.push(FIN | OPCODE_CLOSE);
    // At most 125: REASON_MAX and the code.
    let length = payload.len() as u8;
    match sender {
        Sender::Server => frame.extend_from_slice(&[length]),
        Sender::Client => {
            frame.push(MASKED | length);
            frame.extend_from_slice(&mask);
            for (at, byte) in payload.iter_mut().enumerate() {
                *byte ^= mask[at % 4];
            }
        }
    }
    frame.extend_from_slice(&payload);
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as it is on the wire.
    fn frame(fin: bool, opcode: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![opcode | if fin { FIN } else { 0 }];
        let bit = if masked { MASKED } else { 0 };
        match payload.len() {
            short @ 0..=125 => out.push(bit | short as u8),
            medium @ 126..=0xffff => {
                out.push(bit | 126);
                out.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                out.push(bit | 127);
                out.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        let mask = if masked { [0x11, 0x22, 0x33, 0x44] } else { [0; 4] };
        if masked {
            out.extend_from_slice(&mask);
        }
        out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
        out
    }

    fn after(bytes: &[u8]) -> FrameTracker {
        let mut tracker = FrameTracker::default();
        tracker.feed(bytes);
        tracker
    }

    #[test]
    fn a_new_stream_stands_between_messages() {
        assert!(FrameTracker::default().between_messages());
        assert_eq!(FrameTracker::default().closed(), None);
    }

    #[test]
    fn a_tracker_fits_in_32_bytes() {
        assert!(size_of::<FrameTracker>() <= 32);
    }

    #[test]
    fn control_frames_within_a_fragmented_message_are_no_boundary() {
        let mut tracker = after(&frame(false, 1, true, b"first"));
        assert!(!tracker.between_messages() && tracker.between_frames());
        tracker.feed(&frame(true, 9, true, b"ping"));
        assert!(!tracker.between_messages());
        tracker.feed(&frame(false, 0, true, b"more"));
        assert!(!tracker.between_messages());
        tracker.feed(&frame(true, 0, true, b"last"));
        assert!(tracker.between_messages());
    }

    #[test]
    fn the_code_of_a_close_is_read_through_its_mask() {
        for masked in [false, true] {
            let close = frame(true, 8, masked, &[0x03, 0xe9, b'b', b'y', b'e']);
            let tracker = after(&close);
            assert_eq!(tracker.closed(), Some(1001));
            assert!(!tracker.between_messages(), "nothing may follow a Close");
        }
        assert_eq!(after(&frame(true, 8, true, b"")).closed(), Some(1005));
    }

    #[test]
    fn a_close_counts_only_once_it_is_complete() {
        let close = frame(true, 8, true, &[0x03, 0xe8, b'x']);
        assert_eq!(after(&close[..close.len() - 1]).closed(), None);
        assert_eq!(after(&close).closed(), Some(1000));
    }

    #[test]
    fn a_length_with_its_top_bit_set_ends_following() {
        let mut tracker = after(&[0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!tracker.between_messages());
        tracker.feed(&frame(true, 1, false, b"x"));
        assert!(!tracker.between_messages() && !tracker.between_frames());
    }

    #[test]
    fn boundary_search_stops_right_behind_the_message() {
        let mut stream = frame(false, 2, false, &[7; 300]);
        stream.extend(frame(true, 0, false, b"end"));
        let message = stream.len();
        stream.extend(frame(true, 1, false, b"next"));
        let mut tracker = after(&stream[..10]);
        assert_eq!(tracker.feed_to_boundary(&stream[10..]), Some(message - 10));
        assert_eq!(tracker.feed_to_boundary(&stream[message..]), Some(0));
        let mut unfinished = after(&stream[..10]);
        assert_eq!(unfinished.feed_to_boundary(&stream[10..20]), None);
    }

    #[test]
    fn a_close_frame_is_read_back_by_the_tracker() {
        for sender in [Sender::Server, Sender::Client] {
            let bytes = close_frame(sender, 1012, "ek:drain", [9, 8, 7, 6]);
            assert_eq!(after(&bytes).closed(), Some(1012));
            assert_eq!(bytes[1] & MASKED != 0, sender == Sender::Client);
        }
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let bytes = close_frame(Sender::Server, 1012, &"ä".repeat(100), [0; 4]);
        assert_eq!(usize::from(bytes[1]), 2 + 122);
        assert!(std::str::from_utf8(&bytes[4..]).is_ok());
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![0usize..4, 120usize..130, 65_530usize..65_545];
        (any::<bool>(), 0u8..3, any::<bool>(), length)
            .prop_map(|(fin, opcode, masked, length)| frame(fin, opcode, masked, &vec![0x5a; length]))
    }

    proptest! {
        /// The state depends on the bytes, never on where reads cut them.
        #[test]
        fn cuts_never_change_what_is_seen(
            frames in prop::collection::vec(any_frame(), 1..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let stream: Vec<u8> = frames.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            cuts.push(stream.len());
            cuts.sort_unstable();
            let mut cut_up = FrameTracker::default();
            let mut at = 0;
            for cut in cuts {
                cut_up.feed(&stream[at..cut]);
                at = cut;
                let whole = after(&stream[..cut]);
                prop_assert_eq!(cut_up.between_messages(), whole.between_messages());
                prop_assert_eq!(cut_up.between_frames(), whole.between_frames());
            }
            prop_assert!(cut_up.between_frames());
        }

        /// Whatever comes in, following it ends and does not panic.
        #[test]
        fn any_bytes_can_be_followed(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            after(&bytes);
        }
    }
}

//! The relay on a socket of the test's own making, with a scripted upstream.

use super::*;

#[test]
fn sizes_are_written_in_hexadecimal() {
    for len in [1usize, 9, 10, 15, 16, 255, 256, 4096, 65535, 65536, usize::MAX] {
        let mut line = [0; SIZE_LINE];
        assert_eq!(size_line(len, &mut line), format!("{len:x}\r\n").as_bytes());
    }
}

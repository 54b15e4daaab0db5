//! What may stand in a line of a journal or in a cell of a table.

/// Neither control characters nor what turns the direction of writing.
pub(crate) fn assert_printable(text: &str) {
    let bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    assert!(!text.chars().any(bad), "not fit for a line: {text:?}");
}

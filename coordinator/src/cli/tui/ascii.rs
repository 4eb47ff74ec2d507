//! The terminal view in ASCII, for locales without UTF-8.

use ratatui::buffer::Buffer;

/// Replaces every symbol beyond ASCII: frames, bars and plots by what resembles them, text by `?`.
pub(super) fn replace_symbols(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if !cell.symbol().is_ascii() {
            cell.set_symbol(ascii_symbol(cell.symbol()));
        }
    }
}

fn ascii_symbol(symbol: &str) -> &'static str {
    match symbol {
        "─" => "-",
        "│" => "|",
        "┌" | "┐" | "└" | "┘" => "+",
        "█" | "▇" => "#",
        "▓" | "▆" | "▅" => "=",
        "▄" | "▃" => "-",
        "░" | "▂" | "▁" => ".",
        "↑" => "^",
        "↓" => "v",
        "…" => "~",
        _ => "?",
    }
}

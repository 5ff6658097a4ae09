//! HTML: escaping, and common elements.

/// Escapes text for use between tags and in quoted attributes. Control characters, which HTML forbids, become
/// replacement characters.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + text.len() / 8);
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            '\r' => {}
            // Bidirectional marks could make a text appear elsewhere.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => escaped.push('\u{fffd}'),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A table of names and values; the values are HTML.
pub(super) fn facts(rows: &[(&str, String)]) -> String {
    let mut html = String::from("<dl class=\"facts\">\n");
    for (name, value) in rows {
        html += &format!("<div><dt>{}</dt><dd>{value}</dd></div>\n", escape(name));
    }
    html + "</dl>\n"
}

/// A table with a head; the cells are HTML, those of columns marked `true` are numbers.
pub(super) fn table(caption: &str, head: &[(&str, bool)], rows: &[Vec<String>]) -> String {
    let class = |number: bool| if number { " class=\"number\"" } else { "" };
    let mut html = format!(
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table>\n<caption>{0}</caption>\n<thead><tr>",
        escape(caption)
    );
    for (name, number) in head {
        html += &format!("<th scope=\"col\"{}>{}</th>", class(*number), escape(name));
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in rows {
        html += "<tr>";
        for (cell, (_, number)) in row.iter().zip(head) {
            html += &format!("<td{}>{cell}</td>", class(*number));
        }
        html += "</tr>\n";
    }
    html + "</tbody>\n</table></div>\n"
}

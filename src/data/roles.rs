//! The roles of messages, and the names that datasets and other tools give them: one table for the reader of datasets and
//! for the import of other tools' configurations.

use std::collections::BTreeMap;

/// Our names of the roles, each with its other names in lower case.
pub const ROLES: [(&str, &[&str]); 4] = [
    ("system", &["developer"]),
    ("user", &["human", "prompter"]),
    ("assistant", &["gpt", "model", "bot", "chatbot", "chatgpt", "bing", "bard", "ai"]),
    ("tool", &["function", "observation", "ipython", "tool_response", "function_response"]),
];

/// Names of turns of the assistant that hold a call of a tool as JSON text.
pub const CALLS: [&str; 2] = ["function_call", "tool_call"];

/// The role of that name, in whatever case. `own` are the names that the recipe gives to our roles; they come first.
pub fn role(name: &str, own: &BTreeMap<String, Vec<String>>) -> Option<&'static str> {
    let named =
        own.iter().find(|(_, names)| names.iter().any(|own| own == name)).map(|(role, _)| role.as_str());
    let name = named.map_or_else(|| name.to_lowercase(), str::to_owned);
    let is_called =
        |(role, names): &&(&'static str, &[&str])| *role == name || names.contains(&name.as_str());
    ROLES.iter().find(is_called).map(|(role, _)| *role)
}

/// Whether a message of that name is a call of a tool, as JSON text.
pub fn is_call(name: &str) -> bool {
    CALLS.iter().any(|call| call.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_tools_are_known_and_own_names_come_first() {
        let none = BTreeMap::new();
        for (name, expected) in [
            ("user", Some("user")),
            ("Human", Some("user")),
            ("GPT", Some("assistant")),
            ("developer", Some("system")),
            ("observation", Some("tool")),
            ("narrator", None),
            ("function_call", None),
        ] {
            assert_eq!(role(name, &none), expected, "{name}");
        }
        assert!(is_call("function_call") && !is_call("function"));
        let own = BTreeMap::from([
            ("user".to_owned(), vec!["narrator".to_owned(), "model".to_owned()]),
            ("assistant".to_owned(), vec!["human".to_owned()]),
        ]);
        assert_eq!(role("narrator", &own), Some("user"));
        assert_eq!(role("model", &own), Some("user"));
        assert_eq!(role("human", &own), Some("assistant"));
        assert_eq!(role("Human", &own), Some("user"));
    }

    #[test]
    fn no_name_means_two_roles() {
        let mut all: Vec<&str> =
            ROLES.iter().flat_map(|(role, names)| [*role].into_iter().chain(names.iter().copied())).collect();
        all.extend(CALLS);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}

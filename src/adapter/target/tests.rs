//! Target patterns, held against PEFT's rules.

use proptest::prelude::*;

use super::*;
use crate::adapter::projection::Role;
use crate::adapter::table::{LayerRanges, table};

/// The projections of a small model with grouped-query attention.
fn modules(layers: usize) -> Vec<Module> {
    let mut modules = Vec::new();
    for layer in 0..layers {
        let projections = [
            ("self_attn.q_proj", Role::Query, 32, 32),
            ("self_attn.k_proj", Role::Key, 16, 32),
            ("self_attn.v_proj", Role::Value, 16, 32),
            ("self_attn.o_proj", Role::Output, 32, 32),
            ("mlp.gate_proj", Role::Gate, 48, 32),
            ("mlp.up_proj", Role::Up, 48, 32),
            ("mlp.down_proj", Role::Down, 32, 48),
        ];
        for (slot, (path, role, out_features, in_features)) in projections.into_iter().enumerate() {
            let path = format!("model.layers.{layer}.{path}");
            modules.push(Module { path, layer, role, slot, out_features, in_features, alternates: false });
        }
    }
    modules
}

fn spec(target_modules: TargetModules) -> Spec {
    Spec { rank: 4, alpha: 8.0, target_modules, ..Spec::default() }
}

fn names(names: &[&str]) -> TargetModules {
    TargetModules::Names(names.iter().map(|&name| name.to_owned()).collect())
}

fn pattern(pattern: &str) -> TargetModules {
    TargetModules::Pattern(pattern.to_owned())
}

fn paths(target_modules: TargetModules) -> Vec<String> {
    let targets = resolve(&spec(target_modules), &modules(12)).unwrap();
    targets.into_iter().map(|target| target.module.path).collect()
}

fn problems(spec: &Spec) -> Vec<Problem> {
    resolve(spec, &modules(2)).unwrap_err()
}

#[test]
fn all_linear_is_every_projection_in_order() {
    let targets = resolve(&spec(TargetModules::AllLinear), &modules(3)).unwrap();
    let expected = modules(3);
    assert_eq!(
        targets.iter().map(|target| &target.module).collect::<Vec<_>>(),
        expected.iter().collect::<Vec<_>>()
    );
    assert!(targets.iter().all(|target| (target.rank, target.scaling) == (4, 2.0)));
}

#[test]
fn names_match_exactly_or_after_a_dot() {
    assert_eq!(paths(names(&["q_proj", "v_proj"])).len(), 24);
    assert_eq!(paths(names(&["self_attn.q_proj"])).len(), 12);
    assert_eq!(paths(names(&["1.self_attn.q_proj"])), ["model.layers.1.self_attn.q_proj"]);
    assert_eq!(paths(names(&["model.layers.11.mlp.up_proj"])), ["model.layers.11.mlp.up_proj"]);
    // The order is the model's, and a module named twice is adapted once.
    assert_eq!(paths(names(&["0.mlp.up_proj", "0.mlp.gate_proj", "layers.0.mlp.up_proj"])).len(), 2);
    assert_eq!(problems(&spec(names(&["_proj"])))[0].at, At::TargetName(0));
}

#[test]
fn patterns_match_whole_paths() {
    assert_eq!(paths(pattern(r".*\.[qv]_proj")).len(), 24);
    assert_eq!(paths(pattern(r"model\.layers\.1\..*")).len(), 7);
    // An alternation is anchored as one.
    assert_eq!(paths(pattern(r".*\.q_proj|.*\.v_proj")).len(), 24);
    assert!(resolve(&spec(pattern("q_proj")), &modules(2)).is_err());
    assert!(resolve(&spec(pattern(r".*\.q_pro")), &modules(2)).is_err());
}

#[test]
fn what_matches_nothing_is_named_with_a_way_out() {
    let found = problems(&spec(names(&["q_proj", "v_porj", "zzz"])));
    assert_eq!(
        found.iter().map(|problem| problem.at).collect::<Vec<_>>(),
        [At::TargetName(1), At::TargetName(2)]
    );
    assert!(found[0].message.contains("`v_porj`"));
    assert!(
        found[0].help.starts_with("did you mean `v_proj`? there are q_proj, k_proj, "),
        "{}",
        found[0].help
    );
    assert!(found[1].help.starts_with("there are q_proj"), "{}", found[1].help);
    assert!(found[1].help.ends_with("in layers 0 to 1"), "{}", found[1].help);

    assert!(problems(&spec(pattern("q_proj")))[0].help.contains(r#"target_modules = ["q_proj"]"#));
    assert!(problems(&spec(names(&["all-linear"])))[0].help.contains(r#"target_modules = "all-linear""#));
    assert_eq!(problems(&spec(names(&[])))[0].at, At::TargetModules);
    let broken = &problems(&spec(pattern("(q_proj")))[0];
    assert!(broken.message.contains("unclosed group"), "{}", broken.message);
    assert!(problems(&spec(pattern("q_proj)|(v_proj")))[0].message.contains("is not a regular expression"));
}

#[test]
fn the_head_and_the_embedding_are_refused_with_the_reason() {
    for target in ["lm_head", "embed_tokens", "model.embed_tokens"] {
        let found = problems(&spec(names(&["q_proj", target])));
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains(target) && found[0].help.contains("stays frozen"), "{}", found[0]);
    }
    assert!(problems(&spec(pattern(".*")))[0].message.contains("also matches `lm_head`"));
}

#[test]
fn patterns_give_ranks_and_alphas() {
    let spec = Spec {
        use_rslora: true,
        rank_pattern: vec![("layers.0.mlp.down_proj".into(), 16), ("down_proj".into(), 9)],
        alpha_pattern: vec![("[qk]_proj".into(), 32.0)],
        ..spec(names(&["q_proj", "down_proj"]))
    };
    let targets = resolve(&spec, &modules(2)).unwrap();
    let found: Vec<_> = targets.iter().map(|target| (target.rank, target.alpha, target.scaling)).collect();
    assert_eq!(found, [(4, 32.0, 16.0), (16, 8.0, 2.0), (4, 32.0, 16.0), (9, 8.0, 8.0 / 3.0)]);
}

#[test]
fn patterns_that_decide_nothing_are_problems() {
    let spec = Spec {
        rank_pattern: vec![
            ("down_proj".into(), 8),
            ("layers.0.mlp.down_proj".into(), 16),
            ("k_proj".into(), 2),
        ],
        alpha_pattern: vec![("q_porj".into(), 32.0), ("(".into(), 1.0), ("layers.1.mlp".into(), 1.0)],
        ..spec(names(&["q_proj", "down_proj"]))
    };
    let found = problems(&spec);
    let places: Vec<_> = found.iter().map(|problem| problem.at).collect();
    use At::{AlphaPattern, RankPattern};
    assert_eq!(places, [AlphaPattern(1), RankPattern(1), RankPattern(2), AlphaPattern(0), AlphaPattern(2)]);
    assert!(found[1].message.contains("`down_proj` before it matches first"), "{}", found[1]);
    assert!(found[2].help.contains("target_modules leaves out"), "{}", found[2]);
    assert!(found[3].help.contains("did you mean `q_proj`"), "{}", found[3]);
}

#[test]
fn ranks_that_cannot_be_meant_are_problems() {
    let spec =
        Spec { rank: 1000, rank_pattern: vec![("k_proj".into(), 0)], ..spec(TargetModules::AllLinear) };
    let found = problems(&spec);
    assert_eq!(found.iter().map(|problem| problem.at).collect::<Vec<_>>(), [At::Rank, At::RankPattern(0)]);
    assert!(found[0].help.contains("from 1 to 16"), "{}", found[0]);
    // Above full rank is a waste, and allowed.
    let spec = Spec { rank: 20, ..spec };
    let spec = Spec { rank_pattern: Vec::new(), ..spec };
    let rows = table(&resolve(&spec, &modules(2)).unwrap());
    let wasted: Vec<_> =
        rows.iter().filter(|row| row.exceeds_full_rank()).map(|row| row.name.as_str()).collect();
    assert_eq!(wasted, ["k_proj", "v_proj"]);
}

#[test]
fn one_mistake_is_reported_once() {
    let spec = Spec { rank_pattern: vec![("down_proj".into(), 8)], ..spec(names(&["zzz"])) };
    assert_eq!(problems(&spec).len(), 1);
}

#[test]
fn the_table_groups_layers() {
    let spec = Spec { rank_pattern: vec![(r"layers\.[24]\..*".into(), 2)], ..spec(names(&["k_proj"])) };
    let targets = resolve(&spec, &modules(6)).unwrap();
    let rows = table(&targets);
    assert_eq!(rows.len(), 2);
    assert_eq!(LayerRanges(&rows[0].layers).to_string(), "0-1, 3, 5");
    assert_eq!(LayerRanges(&rows[1].layers).to_string(), "2, 4");
    assert_eq!(rows[0].parameters, 4 * 4 * (32 + 16));
    assert_eq!(
        rows.iter().map(|row| row.parameters).sum::<u64>(),
        targets.iter().map(Target::parameters).sum::<u64>()
    );
}

proptest! {
    #[test]
    fn names_follow_the_rule_of_the_field(name in "([a-z0-9_]{0,3}\\.){0,2}(q_proj|proj|1|)", layer in 0_usize..12) {
        let path = format!("model.layers.{layer}.self_attn.q_proj");
        let expected = path == name || path.ends_with(&format!(".{name}"));
        prop_assert_eq!(names_module(&name, &path), expected);
    }

    #[test]
    fn no_pattern_makes_it_panic(text in any::<String>(), other in "[\\[\\]()*+?.|^$\\\\a-c{},0-9]{0,12}") {
        let modules = modules(2);
        for text in [&text, &other] {
            let everything = Spec {
                rank_pattern: vec![(text.clone(), 2)],
                alpha_pattern: vec![(text.clone(), 2.0)],
                ..spec(pattern(text))
            };
            let resolved = resolve(&everything, &modules);
            if let Ok(targets) = &resolved {
                prop_assert!(!targets.is_empty());
            }
            _ = resolve(&spec(names(&[text])), &modules);
        }
    }

    #[test]
    fn a_full_path_names_its_module_alone(layer in 0_usize..12, projection in 0_usize..7) {
        let modules = modules(12);
        let module = &modules[layer * 7 + projection];
        let targets = resolve(&spec(names(&[&module.path])), &modules).unwrap();
        prop_assert_eq!(targets.len(), 1);
        prop_assert_eq!(&targets[0].module, module);
    }
}

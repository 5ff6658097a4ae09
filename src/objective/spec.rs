//! The `[objective.*]` tables of a recipe: what is minimised, and its keys.

use super::Objective;
use super::feedback::{Kto, KtoLoss};
use super::preference::{Dpo, DpoLoss, Preference};
use crate::document::{Key, KeyTable, Limits, Problem, TableReader, Word, Writer};

impl Word for DpoLoss {
    const WORDS: &'static [(&'static str, Self)] =
        &[("sigmoid", Self::Sigmoid), ("ipo", Self::Ipo), ("hinge", Self::Hinge), ("robust", Self::Robust)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[("dpo", "sigmoid"), ("slic", "hinge")];
}

impl Word for KtoLoss {
    const WORDS: &'static [(&'static str, Self)] =
        &[("kto", Self::Kto), ("apo-zero-unpaired", Self::ApoZeroUnpaired)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[("apo_zero_unpaired", "apo-zero-unpaired")];
}

/// `[objective.sft]`.
#[derive(Default)]
pub(crate) struct Sft {
    token_weights: TokenWeights,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum TokenWeights {
    #[default]
    Uniform,
    Dft,
}

impl Word for TokenWeights {
    const WORDS: &'static [(&'static str, Self)] = &[("uniform", Self::Uniform), ("dft", Self::Dft)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[("nll", "uniform"), ("none", "uniform")];
}

impl Default for Dpo {
    fn default() -> Self {
        Self {
            beta: 0.1,
            loss: DpoLoss::Sigmoid,
            label_smoothing: 0.0,
            rpo_alpha: 0.0,
            length_normalized: false,
        }
    }
}

impl Default for Kto {
    fn default() -> Self {
        Self { beta: 0.1, loss: KtoLoss::Kto, wanted_weight: 1.0, unwanted_weight: 1.0 }
    }
}

/// `[objective.orpo]`.
pub(crate) struct Orpo {
    beta: f64,
}

impl Default for Orpo {
    fn default() -> Self {
        Self { beta: 0.1 }
    }
}

/// `[objective.simpo]`.
pub(crate) struct SimPo {
    beta: f64,
    gamma: f64,
}

impl Default for SimPo {
    fn default() -> Self {
        Self { beta: 2.0, gamma: 1.0 }
    }
}

const SCALE: Limits = Limits::above(0.0).to(1000.0);
const WEIGHT: Limits = Limits::from(0.0).to(1000.0);

pub(crate) static SFT: KeyTable<Sft> = KeyTable {
    path: "objective.sft",
    meaning: "Trains on the supervised tokens of every row; the objective of a recipe that names none.",
    keys: &[Key::<Sft>::parsed("token_weights", |sft| &mut sft.token_weights)
        .means("Weight of each token's loss: 1, or its probability under the model (dft).")],
    added: true,
    ..KeyTable::NEW
};

type D = Key<Dpo>;

pub(crate) static DPO: KeyTable<Dpo> = KeyTable {
    path: "objective.dpo",
    meaning: "Trains on pairs of answers to prefer the chosen one, held to the model as the run began (DPO).",
    keys: &[
        D::number("beta", SCALE, |dpo| &mut dpo.beta)
            .means("How strongly the model is held to the reference.")
            .also(&["pref_beta", "rl_beta"]),
        D::parsed("loss", |dpo| &mut dpo.loss)
            .means("The loss as a function of the margin between the answers."),
        D::number("label_smoothing", Limits::from(0.0).below(0.5), |dpo| &mut dpo.label_smoothing)
            .means("Share of pairs that are assumed to be labelled the wrong way round.")
            .also(&["dpo_label_smoothing"]),
        D::number("rpo_alpha", WEIGHT, |dpo| &mut dpo.rpo_alpha)
            .means("Weight of the chosen answer's mean negative log-likelihood, added to the loss.")
            .also(&["pref_ftx"]),
        D::flag("length_normalized", |dpo| &mut dpo.length_normalized)
            .means("Compare log-probabilities per token instead of per answer."),
    ],
    checks: &[unused_smoothing, needless_normalization],
    ..KeyTable::NEW
};

pub(crate) static ORPO: KeyTable<Orpo> = KeyTable {
    path: "objective.orpo",
    meaning: "Trains on pairs of answers: likelihood of the chosen one and an odds ratio, without a reference (ORPO).",
    keys: &[Key::<Orpo>::number("beta", SCALE, |orpo| &mut orpo.beta)
        .means("Weight of the odds-ratio term.")
        .also(&["orpo_alpha"])],
    ..KeyTable::NEW
};

pub(crate) static SIMPO: KeyTable<SimPo> = KeyTable {
    path: "objective.simpo",
    meaning: "Trains on pairs of answers by mean log-probabilities and a margin, without a reference (SimPO).",
    keys: &[
        Key::<SimPo>::number("beta", SCALE, |simpo| &mut simpo.beta).means("Scale of the rewards."),
        Key::<SimPo>::number("gamma", WEIGHT, |simpo| &mut simpo.gamma)
            .means("Margin by which the chosen reward should exceed the rejected one.")
            .also(&["simpo_gamma"]),
    ],
    ..KeyTable::NEW
};

type T = Key<Kto>;

pub(crate) static KTO: KeyTable<Kto> = KeyTable {
    path: "objective.kto",
    meaning: "Trains on single answers that are wanted or not, held to the model as the run began (KTO).",
    keys: &[
        T::number("beta", SCALE, |kto| &mut kto.beta)
            .means("How strongly the model is held to the reference."),
        T::parsed("loss", |kto| &mut kto.loss)
            .means("Whether rewards are measured from a baseline of the micro-batch (kto) or from zero."),
        T::number("wanted_weight", WEIGHT, |kto| &mut kto.wanted_weight)
            .means("Weight of wanted answers.")
            .also(&["desirable_weight", "kto_desirable_weight", "kto_chosen_weight"]),
        T::number("unwanted_weight", WEIGHT, |kto| &mut kto.unwanted_weight)
            .means("Weight of unwanted answers.")
            .also(&["undesirable_weight", "kto_undesirable_weight", "kto_rejected_weight"]),
    ],
    ..KeyTable::NEW
};

fn unused_smoothing(table: &mut TableReader<'_, '_>, dpo: &Dpo) {
    let has_effect = matches!(dpo.loss, DpoLoss::Sigmoid | DpoLoss::Robust);
    if let Some(place) = table.place_of("label_smoothing").filter(|_| !has_effect) {
        let message = format!("`label_smoothing` has no effect with `loss = \"{}\"`", dpo.loss.word());
        table.report(
            Problem::new("recipe::contradiction", place, message)
                .label("has no effect here")
                .help("remove it, or choose the loss \"sigmoid\" or \"robust\""),
        );
    }
}

fn needless_normalization(table: &mut TableReader<'_, '_>, dpo: &Dpo) {
    let is_ipo = dpo.loss == DpoLoss::Ipo;
    if let Some(place) = table.place_of("length_normalized").filter(|_| is_ipo) {
        let message = "`loss = \"ipo\"` always compares log-probabilities per token";
        table.report(
            Problem::new("recipe::contradiction", place, message)
                .label("has no effect here")
                .help("remove it"),
        );
    }
}

impl Objective {
    /// Reads the `[objective]` table, in which the table's name is the kind; supervised fine-tuning if it is absent.
    pub fn read(objective: &mut TableReader<'_, '_>) -> Self {
        let kinds = ["sft", "dpo", "orpo", "simpo", "kto"];
        let named = kinds.into_iter().filter(|kind| objective.value(kind).is_some()).collect::<Vec<_>>();
        if objective.is_present() && objective.is_empty() {
            let problem = Problem::new(
                "recipe::missing_table",
                objective.header(),
                "`[objective]` does not say which kind",
            );
            objective.report(problem.label("no kind").help(
                "write `[objective.dpo]`, `[objective.orpo]`, `[objective.simpo]` or `[objective.kto]`, or leave the table \
                 out for supervised fine-tuning",
            ));
        }
        if let [first, second, ..] = named.as_slice() {
            let place = objective.place_of(second).unwrap_or_else(|| objective.header());
            let message = format!("a run has one objective, and this recipe has `{first}` and `{second}`");
            objective.report(
                Problem::new("recipe::contradiction", place, message)
                    .label("a second objective")
                    .help("remove one of the two tables"),
            );
        }
        let mut found = Self::Sft;
        objective.table("sft", |sft| {
            if SFT.read(sft).token_weights == TokenWeights::Dft {
                found = Self::Dft;
            }
        });
        objective.table("dpo", |dpo| {
            let keys = DPO.read(dpo);
            if dpo.is_present() {
                found = Self::Preference(Preference::Dpo(keys));
            }
        });
        objective.table("orpo", |orpo| {
            let Orpo { beta } = ORPO.read(orpo);
            if orpo.is_present() {
                found = Self::Preference(Preference::Orpo { beta });
            }
        });
        objective.table("simpo", |simpo| {
            let SimPo { beta, gamma } = SIMPO.read(simpo);
            if simpo.is_present() {
                found = Self::Preference(Preference::SimPo { beta, gamma });
            }
        });
        objective.table("kto", |kto| {
            let keys = KTO.read(kto);
            if kto.is_present() {
                found = Self::Feedback(keys);
            }
        });
        found
    }

    /// Writes the table; supervised fine-tuning without token weights has none.
    pub fn write(&self, writer: &mut Writer) {
        match *self {
            Self::Sft => {}
            Self::Dft => SFT.write(&mut Sft { token_weights: TokenWeights::Dft }, writer),
            Self::Preference(Preference::Dpo(mut dpo)) => DPO.write(&mut dpo, writer),
            Self::Preference(Preference::Orpo { beta }) => ORPO.write(&mut Orpo { beta }, writer),
            Self::Preference(Preference::SimPo { beta, gamma }) => {
                SIMPO.write(&mut SimPo { beta, gamma }, writer);
            }
            Self::Feedback(mut kto) => KTO.write(&mut kto, writer),
        }
    }

    /// The name of its table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sft | Self::Dft => "sft",
            Self::Preference(Preference::Dpo(_)) => "dpo",
            Self::Preference(Preference::Orpo { .. }) => "orpo",
            Self::Preference(Preference::SimPo { .. }) => "simpo",
            Self::Feedback(_) => "kto",
        }
    }
}

//! Names of other tools that no key of ours stands for: why, and what to do instead.
//!
//! From the configuration files of PEFT, transformers, TRL, axolotl, LLaMA-Factory, unsloth, torchtune and mlx-lm. Names
//! that mean a key or a table of ours stand in its declaration.

use super::keys;
use crate::document::Meaning;

/// What a name of another tool means here, if it is known.
pub(crate) fn meaning(name: &str) -> Option<Meaning> {
    let tables = keys::tables();
    let named = |names: &[&str]| names.contains(&name);
    if let Some(key) = tables.iter().flat_map(|table| &table.keys).find(|key| named(key.also)) {
        return Some(Meaning::Key(key.path.clone()));
    }
    if let Some(table) = tables.iter().find(|table| named(table.also)) {
        return Some(Meaning::Table(table.path));
    }
    NOTES.iter().find(|(names, _)| named(names)).map(|(_, note)| Meaning::Note(note))
}

/// Names, and a note on them.
pub(super) const NOTES: &[(&[&str], &str)] = &[
    (&["trust_remote_code"], "no code of a model is ever run; leave it out"),
    (
        &[
            "attn_implementation",
            "flash_attention",
            "flash_attn",
            "use_flash_attention_2",
            "sdp_attention",
            "xformers_attention",
        ],
        "attention is always memory-efficient here; leave it out",
    ),
    (
        &[
            "gradient_checkpointing",
            "use_gradient_checkpointing",
            "enable_activation_checkpointing",
            "grad_checkpoint",
            "activation_checkpointing",
        ],
        "activations are always recomputed layer by layer; leave it out",
    ),
    (
        &["tokenizer", "tokenizer_name", "tokenizer_type", "tokenizer_name_or_path"],
        "the tokenizer is the base model's own; leave it out",
    ),
    (
        &[
            "pad_token",
            "pad_to_multiple_of",
            "pad_to_max_length",
            "padding_side",
            "pad_to_sequence_len",
            "special_tokens",
        ],
        "nothing is padded, so no padding token is chosen; leave it out",
    ),
    (
        &["load_in_8bit", "int8", "fp4"],
        "the one quantization is `[quantization.nf4]`; left out, the base stays dense",
    ),
    (&["loraplus_lr_embedding"], "embeddings get no adapter; leave it out"),
    (&["loraplus_weight_decay"], "`weight_decay` under `[train]` holds for A and B alike; leave it out"),
    (&["scale", "scaling"], "the scaling is `alpha` / `rank` in `[adapter.lora]`"),
    (
        &["peft_type", "task_type", "finetuning_type", "fine_tune_type"],
        "the adapter is `[adapter.lora]`; leave it out",
    ),
    (
        &["layers_to_transform", "layers_pattern", "num_layers"],
        "choose projections with `target_modules` in `[adapter.lora]`",
    ),
    (&["bias", "lora_bias", "fan_in_fan_out"], "biases stay frozen; leave it out"),
    (
        &["test_datasets", "validation_file", "eval_dataset", "val_data", "eval_file"],
        "a held-out file is a `[[dataset]]` with `split = \"validation\"`",
    ),
    (
        &["per_device_eval_batch_size", "eval_batch_size", "val_batches"],
        "held-out rows are taken `micro_batch_size` at a time, all of them; leave it out",
    ),
    (
        &["resume", "resume_from_checkpoint", "auto_resume_from_checkpoints"],
        "not the recipe's: `tune run recipe.toml --resume` goes on from the newest checkpoint",
    ),
    (
        &[
            "optimizer",
            "optim",
            "optim_args",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "betas",
            "eps",
            "epsilon",
            "beta1",
            "beta2",
        ],
        "the optimizer is AdamW, betas 0.9 and 0.999, epsilon 1e-8; leave it out",
    ),
    (
        &[
            "report_to",
            "wandb_project",
            "wandb",
            "wandb_run_id",
            "run_name",
            "project_name",
            "use_tensorboard",
            "mlflow_tracking_uri",
        ],
        "nothing is sent anywhere; metrics.jsonl in the run folder has every figure, and `tune run --tensorboard` writes event files",
    ),
    (&["push_to_hub", "hub_model_id", "hub_token", "hf_token", "token"], "nothing is uploaded; leave it out"),
    (
        &[
            "deepspeed",
            "deepspeed_config",
            "fsdp",
            "fsdp_config",
            "fsdp_version",
            "fsdp_final_state_dict_type",
        ],
        "nothing is sharded: each GPU has all layers, or fetches them with `offload` under `[model]`; several GPUs share \
         `train.lanes`, started with `mpirun -n N tune run RECIPE --ranks mpi`",
    ),
    (
        &[
            "num_processes",
            "num_machines",
            "num_gpus",
            "distributed_type",
            "world_size",
            "nproc_per_node",
            "nnodes",
            "ddp",
            "ddp_backend",
            "ddp_find_unused_parameters",
            "ddp_broadcast_buffers",
            "ddp_bucket_cap_mb",
        ],
        "several GPUs share `train.lanes`, started with `mpirun -n N tune run RECIPE --ranks mpi`",
    ),
    (
        &["ddp_timeout"],
        "several GPUs share `train.lanes`, started with `mpirun -n N tune run RECIPE --ranks mpi --silence 10m`, which waits \
         so long for the other ranks",
    ),
    (
        &["load_best_model_at_end", "metric_for_best_model", "early_stopping_patience"],
        "the best checkpoint by held-out loss is always kept in checkpoints/best; leave it out",
    ),
    (
        &[
            "dataloader_num_workers",
            "dataset_num_proc",
            "num_proc",
            "num_workers",
            "preprocessing_num_workers",
        ],
        "tokenizing always runs on threads of its own; leave it out",
    ),
];

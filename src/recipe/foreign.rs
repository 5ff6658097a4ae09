//! The words of other tools, and ours for the same: what people type who come from elsewhere.
//!
//! A flat catalogue, from the configuration files of PEFT, transformers, TRL, axolotl, LLaMA-Factory,
//! unsloth, torchtune and mlx-lm. A test holds every key named here against the keys that exist.

use crate::document::Meaning::{Key, Note, Table};
use crate::document::{Alias, Meaning};

const fn alias(names: &'static [&'static str], meaning: Meaning) -> Alias {
    Alias { names, meaning }
}

/// What a name of another tool means here, if it is known.
pub(crate) fn meaning(name: &str) -> Option<Meaning> {
    ALIASES.iter().find(|alias| alias.names.contains(&name)).map(|alias| alias.meaning)
}

/// Names of other tools.
pub(super) const ALIASES: &[Alias] = &[
    // The run.
    alias(&["output", "output_path", "out_dir", "save_dir", "adapter_path", "run_dir"], Key("output_dir")),
    alias(&["random_seed", "data_seed"], Key("seed")),
    alias(&["device_map", "accelerator", "use_cpu", "no_cuda"], Key("device")),
    // The base model.
    alias(
        &[
            "base_model",
            "model_name_or_path",
            "model_name",
            "model_id",
            "model_path",
            "pretrained_model",
            "name_or_path",
            "base_model_name_or_path",
            "checkpoint_dir",
        ],
        Key("model.base"),
    ),
    alias(&["model_revision", "revision_of_model", "base_model_revision"], Key("model.revision")),
    alias(
        &[
            "dtype",
            "torch_dtype",
            "compute_type",
            "precision",
            "mixed_precision",
            "bf16",
            "fp16",
            "tf32",
            "pure_bf16",
            "bnb_4bit_compute_dtype",
        ],
        Key("model.compute_dtype"),
    ),
    alias(&["trust_remote_code"], Note("no code of a model is ever run; leave it out")),
    alias(
        &[
            "attn_implementation",
            "flash_attention",
            "flash_attn",
            "use_flash_attention_2",
            "sdp_attention",
            "xformers_attention",
        ],
        Note("attention is always memory-efficient here; leave it out"),
    ),
    alias(
        &[
            "gradient_checkpointing",
            "use_gradient_checkpointing",
            "enable_activation_checkpointing",
            "grad_checkpoint",
            "activation_checkpointing",
        ],
        Note("activations are always recomputed layer by layer; leave it out"),
    ),
    alias(
        &["tokenizer", "tokenizer_name", "tokenizer_type", "tokenizer_name_or_path"],
        Note("the tokenizer is the base model's own; leave it out"),
    ),
    alias(
        &[
            "pad_token",
            "pad_to_multiple_of",
            "pad_to_max_length",
            "padding_side",
            "pad_to_sequence_len",
            "special_tokens",
        ],
        Note("nothing is padded, so no padding token is chosen; leave it out"),
    ),
    // The frozen base.
    alias(
        &[
            "load_in_4bit",
            "quantize",
            "quantization_bit",
            "bnb_4bit_quant_type",
            "bnb_config",
            "bnb",
            "quantization_config",
            "qlora",
            "nf4",
        ],
        Table("quantization.nf4"),
    ),
    alias(
        &["bnb_4bit_use_double_quant", "double_quantization", "use_double_quant"],
        Key("quantization.nf4.double_quant"),
    ),
    alias(&["blocksize", "bnb_4bit_blocksize"], Key("quantization.nf4.block_size")),
    alias(
        &["load_in_8bit", "int8", "fp4"],
        Note("the one quantization is `[quantization.nf4]`; left out, the base stays dense"),
    ),
    // The adapter.
    alias(
        &["lora", "peft", "peft_config", "lora_config", "lora_parameters", "lora_model"],
        Table("adapter.lora"),
    ),
    alias(&["r", "lora_r", "lora_rank", "peft_lora_r"], Key("adapter.lora.rank")),
    alias(&["lora_alpha", "alpha_lora"], Key("adapter.lora.alpha")),
    alias(&["lora_dropout", "drop_out"], Key("adapter.lora.dropout")),
    alias(
        &[
            "lora_target_modules",
            "lora_target",
            "targets",
            "modules",
            "lora_attn_modules",
            "lora_target_linear",
            "apply_lora_to_mlp",
            "lora_modules",
            "lora_layers",
            "keys",
        ],
        Key("adapter.lora.target_modules"),
    ),
    alias(&["rslora", "peft_use_rslora", "use_rs_lora"], Key("adapter.lora.use_rslora")),
    alias(
        &["lora_model_dir", "adapter_name_or_path", "resume_adapter_file", "init_adapter"],
        Key("adapter.lora.init_from"),
    ),
    alias(
        &[
            "loraplus_lr_ratio",
            "loraplus_ratio",
            "lora_plus_ratio",
            "lora_plus_lr_ratio",
            "lr_ratio",
            "loraplus",
        ],
        Key("adapter.lora.learning_rate_ratio"),
    ),
    alias(&["loraplus_lr_embedding"], Note("embeddings get no adapter; leave it out")),
    alias(
        &["loraplus_weight_decay"],
        Note("`weight_decay` under `[train]` holds for A and B alike; leave it out"),
    ),
    alias(&["scale", "scaling"], Note("the scaling is `alpha` / `rank` in `[adapter.lora]`")),
    alias(
        &["peft_type", "task_type", "finetuning_type", "fine_tune_type"],
        Note("the adapter is `[adapter.lora]`; leave it out"),
    ),
    alias(
        &["layers_to_transform", "layers_pattern", "num_layers"],
        Note("choose projections with `target_modules` in `[adapter.lora]`"),
    ),
    alias(
        &["lora_modules_to_save", "additional_target", "modules_to_train"],
        Key("adapter.lora.modules_to_save"),
    ),
    alias(&["bias", "lora_bias", "fan_in_fan_out"], Note("biases stay frozen; leave it out")),
    alias(&["peft_use_dora", "dora"], Key("adapter.lora.use_dora")),
    // Data.
    alias(
        &[
            "sequence_len",
            "max_length",
            "cutoff_len",
            "max_seq_length",
            "model_max_length",
            "max_sequence_length",
            "block_len",
            "seq_len",
            "context_length",
        ],
        Key("data.max_seq_len"),
    ),
    alias(
        &["sample_packing", "pack", "packed", "neat_packing", "use_packing", "multipack"],
        Key("data.packing"),
    ),
    alias(&["excess_length_strategy", "truncation", "overflow"], Key("data.on_overflow")),
    alias(
        &[
            "val_set_size",
            "val_size",
            "eval_split",
            "validation_split",
            "test_size",
            "eval_split_ratio",
            "test_split",
        ],
        Key("data.val_split"),
    ),
    alias(
        &[
            "train_on_inputs",
            "train_on_prompt",
            "train_on_input",
            "completion_only_loss",
            "assistant_only_loss",
            "mask_prompt",
            "train_on_responses_only",
            "roles_to_train",
            "mask_history",
            "train_on_completions",
        ],
        Key("data.train_on"),
    ),
    alias(
        &["shuffle_dataset", "shuffle_merged_datasets", "shuffle_data", "disable_shuffling"],
        Key("data.shuffle"),
    ),
    alias(
        &["template", "chat_template_jinja", "chat_template_path", "prompt_template"],
        Key("data.chat_template"),
    ),
    // Datasets.
    alias(
        &[
            "datasets",
            "data_files",
            "train_file",
            "dataset_name",
            "dataset_path",
            "dataset_dir",
            "train_data",
        ],
        Table("dataset"),
    ),
    alias(
        &["test_datasets", "validation_file", "eval_dataset", "val_data", "eval_file"],
        Note("a held-out file is a `[[dataset]]` with `split = \"validation\"`"),
    ),
    alias(&["file", "file_name", "filename", "source"], Key("dataset.path")),
    alias(&["type", "ds_type", "formatting", "kind", "style"], Key("dataset.format")),
    alias(
        &[
            "columns",
            "field",
            "column_map",
            "column_mapping",
            "message_property_mappings",
            "field_messages",
            "field_instruction",
            "field_output",
            "prompt_column",
            "completion_column",
        ],
        Key("dataset.fields"),
    ),
    alias(&["probability", "mix_ratio", "interleave_probs", "ratio"], Key("dataset.weight")),
    // Training.
    alias(&["training", "trainer", "training_args", "training_arguments", "train_config"], Table("train")),
    alias(&["num_train_epochs", "num_epochs", "epoch", "n_epochs", "max_epochs"], Key("train.epochs")),
    alias(
        &[
            "max_train_steps",
            "iters",
            "num_steps",
            "total_steps",
            "max_iters",
            "steps",
            "max_steps_per_epoch",
        ],
        Key("train.max_steps"),
    ),
    alias(
        &[
            "per_device_train_batch_size",
            "batch_size",
            "train_batch_size",
            "micro_batch",
            "device_batch_size",
            "per_device_batch_size",
        ],
        Key("train.micro_batch_size"),
    ),
    alias(
        &[
            "gradient_accumulation",
            "grad_accumulation_steps",
            "accumulation_steps",
            "grad_accum",
            "accumulate_grad_batches",
            "gradient_accumulation_step",
        ],
        Key("train.gradient_accumulation_steps"),
    ),
    alias(
        &["per_device_eval_batch_size", "eval_batch_size", "val_batches"],
        Note("held-out rows are taken `micro_batch_size` at a time, all of them; leave it out"),
    ),
    alias(&["lr", "peak_lr", "max_lr"], Key("train.learning_rate")),
    alias(
        &["lr_scheduler_type", "scheduler", "lr_schedule", "schedule", "lr_decay_style"],
        Key("train.lr_scheduler"),
    ),
    alias(&["warmup", "num_warmup_steps", "warmup_iters", "lr_warmup_steps"], Key("train.warmup_steps")),
    alias(&["warmup_fraction", "warmup_proportion", "lr_warmup_ratio"], Key("train.warmup_ratio")),
    alias(&["wd"], Key("train.weight_decay")),
    alias(
        &[
            "max_norm",
            "gradient_clipping",
            "clip_grad_norm",
            "grad_clip",
            "max_gradient_norm",
            "gradient_clip_val",
        ],
        Key("train.max_grad_norm"),
    ),
    alias(
        &["log_steps", "log_every", "log_every_n_steps", "log_interval", "steps_per_report"],
        Key("train.logging_steps"),
    ),
    alias(
        &[
            "eval_interval",
            "steps_per_eval",
            "evals_per_epoch",
            "evaluation_steps",
            "eval_every",
            "eval_frequency",
            "eval_strategy",
            "evaluation_strategy",
        ],
        Key("train.eval_steps"),
    ),
    alias(
        &[
            "save_every",
            "saves_per_epoch",
            "checkpoint_steps",
            "save_interval",
            "save_frequency",
            "save_strategy",
            "checkpointing_steps",
        ],
        Key("train.save_steps"),
    ),
    alias(
        &["resume", "resume_from_checkpoint", "auto_resume_from_checkpoints"],
        Note("not the recipe's: `tune run recipe.toml --resume` goes on from the newest checkpoint"),
    ),
    alias(&["max_runtime", "max_train_time", "time_limit", "max_seconds", "timeout"], Key("train.max_time")),
    alias(&["max_train_tokens", "token_budget", "num_tokens"], Key("train.max_tokens")),
    alias(&["skip_nan", "skip_nan_steps", "nan_policy", "on_nan"], Key("train.on_divergence")),
    alias(&["eval_loss", "fail_if", "max_loss", "max_val_loss"], Key("gate.max_eval_loss")),
    alias(&["max_checkpoints", "keep_checkpoints", "keep_last", "save_limit"], Key("train.save_total_limit")),
    alias(
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
        Note("the optimizer is AdamW, betas 0.9 and 0.999, epsilon 1e-8; leave it out"),
    ),
    alias(
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
        Note("nothing is sent anywhere; every figure stands in metrics.jsonl in the run folder"),
    ),
    alias(
        &["push_to_hub", "hub_model_id", "hub_token", "hf_token", "token"],
        Note("nothing is uploaded; leave it out"),
    ),
    alias(
        &["deepspeed", "fsdp", "fsdp_config", "num_processes", "ddp_find_unused_parameters"],
        Note("a run has one device; leave it out"),
    ),
    alias(
        &["load_best_model_at_end", "metric_for_best_model", "early_stopping_patience"],
        Note("the best checkpoint by held-out loss is always kept in checkpoints/best; leave it out"),
    ),
    alias(
        &[
            "dataloader_num_workers",
            "dataset_num_proc",
            "num_proc",
            "num_workers",
            "preprocessing_num_workers",
        ],
        Note("tokenizing always runs on threads of its own; leave it out"),
    ),
    // Samples.
    alias(&["sample_prompts", "eval_prompts"], Key("sample.prompts")),
    alias(&["max_tokens", "max_completion_length", "num_predict"], Key("sample.max_new_tokens")),
];

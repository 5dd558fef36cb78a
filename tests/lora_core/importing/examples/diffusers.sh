export MODEL_NAME="models/sdxl"
export OUTPUT_DIR='runs/huggy v11'

accelerate launch --mixed_precision="bf16" train_dreambooth_lora_sdxl_advanced.py \
  --pretrained_model_name_or_path=$MODEL_NAME \
  --pretrained_vae_model_name_or_path="madebyollin/sdxl-vae-fp16-fix" \
  --dataset_name="./huggy_clean" \
  --instance_prompt="a TOK emoji" \
  --validation_prompt="a TOK emoji dressed as Yoda" \
  --output_dir="${OUTPUT_DIR}" \
  --caption_column="prompt" \
  --resolution=1024 \
  --train_batch_size=4 \
  --repeats=2 \
  --report_to="wandb" \
  --gradient_accumulation_steps=1 \
  --gradient_checkpointing \
  --learning_rate=1.0 \
  --text_encoder_lr=1.0 \
  --optimizer="prodigy" \
  --prodigy_safeguard_warmup=True \
  --prodigy_use_bias_correction=False \
  --adam_beta2=0.99 \
  --adam_weight_decay=0.01 \
  --train_text_encoder_ti \
  --train_text_encoder_ti_frac=0.4 \
  --token_abstraction="TOK" \
  --num_new_tokens_per_abstraction=3 \
  --with_prior_preservation --class_data_dir=faces --num_class_images=150 --class_prompt="a photo of a person" \
  --snr_gamma=5.0 \
  --lr_scheduler="constant" \
  --lr_warmup_steps=0 \
  --rank=32 \
  --max_train_steps=1000 \
  --checkpointing_steps=2000 \
  --seed="0" \
  --push_to_hub \
  --no_such_option=7

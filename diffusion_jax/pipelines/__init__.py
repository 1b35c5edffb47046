"""From prompts to images: networks, schedules and samplers put together."""

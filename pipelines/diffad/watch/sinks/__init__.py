"""Where results go: files, a webhook, an MQTT broker, the registers of a controller."""

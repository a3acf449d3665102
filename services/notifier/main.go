// Command lifeboat-notifier takes alerts from Alertmanager and delivers them to chat, with the runbook in the message.
package main

import (
	"os"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/app"
)

func main() { os.Exit(service.Main(app.Command())) }

// Command lifeboat-backup takes snapshots, verifies them and drills their restore.
package main

import (
	"os"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/backup/app"
)

func main() { os.Exit(service.Main(app.Command())) }

// Command lifeboat-scheduler decides when: it turns schedules into jobs.
package main

import (
	"os"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/app"
)

func main() { os.Exit(service.Main(app.CommandAt(clock()))) }

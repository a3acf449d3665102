package testbed

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// Row is a figure in the table of a benchmark.
type Row struct {
	// Part is the part of the benchmark that measures it.
	Part, What, Measured string
	// Must is what it has to reach; empty: nothing.
	Must    string
	Reached bool
}

// Figure makes a row.
func Figure(part, what, measured, must string, reached bool) Row {
	return Row{Part: part, What: what, Measured: measured, Must: must, Reached: reached}
}

// Report prints the table of the part that was measured, all when only is empty, and the figures as JSON in the last line.
func Report(only string, rows []Row, figures any) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nFIGURE\tMEASURED\tMUST REACH\t\n")
	for _, r := range rows {
		verdict := "reached"
		switch {
		case only != "" && only != r.Part:
			continue
		case r.Must == "":
			verdict = ""
		case !r.Reached:
			verdict = "MISSED"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.What, r.Measured, r.Must, verdict)
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(figures)
}

// WithFleet runs a benchmark on a NewFleet whose data is in a new folder below scratch, and takes everything away afterwards.
func WithFleet(ctx context.Context, binary, scratch string, run func(*Bed) error) error {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(scratch, "lifeboat-bench-")
	if err != nil {
		return fmt.Errorf("making a folder for the data: %w", err)
	}
	defer os.RemoveAll(dir)
	bed, err := NewFleet(ctx, os.Stdout, dir, binary)
	if err != nil {
		return err
	}
	defer bed.Stop()
	fmt.Fprintf(bed.Out, "one NATS server, one replica, file storage in %s, its default sync_interval: the same for both sides\n", scratch)
	return run(bed)
}

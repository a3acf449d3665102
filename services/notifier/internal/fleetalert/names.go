package fleetalert

// Names are those of all the fleet's own alerts.
func Names() []string {
	var all []string
	for _, r := range rules() {
		all = append(all, r.alert)
	}
	return all
}

// Package observe holds the tests of what makes a fleet seen: Prometheus' rules, Grafana's dashboard, and the queries in runbooks.
package observe

// Package packet reads and changes packets: it is the only place that knows
// where a header's bytes are.
package packet

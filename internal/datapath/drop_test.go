package datapath

import (
	"os"
	"strings"
	"testing"
)

// The reasons are label values of metrics and words of documents: changing one
// breaks dashboards, so the list is written down once more.
func TestDropReasons(t *testing.T) {
	t.Parallel()
	golden, err := os.ReadFile("testdata/drops.golden")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	seen := map[string]Drop{}
	for d := range dropCount {
		name := d.String()
		if name == "" || name == "unknown" || strings.ToLower(name) != name || strings.ContainsAny(name, " -") {
			t.Errorf("reason %d is called %q", d, name)
		}
		if other, ok := seen[name]; ok {
			t.Errorf("reasons %d and %d are both called %q", other, d, name)
		}
		seen[name] = d
		answers := [...]string{answerNone: "silence", answerHost: "unreachable", answerPort: "refused", answerAdmin: "prohibited"}
		b.WriteString(name + " " + answers[answerTo(d)] + "\n")
	}
	if b.String() != string(golden) {
		t.Errorf("reasons and their answers are\n%s\nwant\n%s", b.String(), golden)
	}
	if got := dropCount.String(); got != "unknown" {
		t.Errorf("a reason that there is not is called %q", got)
	}
}

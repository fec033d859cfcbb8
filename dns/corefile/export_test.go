package corefile

import "strings"

// MaxExpanded is for tests.
const MaxExpanded = maxExpanded

// DirectiveLines returns the lines of the directives and options in servers.
func DirectiveLines(text string) ([]int, error) {
	blocks, err := parse(text)
	var out []int
	var walk func([]directive)
	walk = func(list []directive) {
		for i := range list {
			out = append(out, list[i].line)
			walk(list[i].body)
		}
	}
	for i := range blocks {
		if !strings.HasPrefix(blocks[i].keys[0], "(") {
			walk(blocks[i].directives)
		}
	}
	return out, err
}

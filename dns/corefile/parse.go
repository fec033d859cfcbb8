package corefile

import (
	"fmt"
	"strings"
)

// The bounds of a file that anybody may have written.
const (
	maxText     = 1 << 20
	maxTokens   = 100_000
	maxExpanded = 10_000 // directives, with what was imported
	maxDepth    = 8      // of imports in snippets
)

// block is a server block or a snippet.
type block struct {
	line       int
	keys       []string
	directives []directive
}

// directive is a line and the block behind it.
type directive struct {
	line  int
	words []string
	body  []directive
	block bool // there was one, be it empty
}

// text returns the directive as it was written, its block aside.
func (d *directive) text() string { return strings.Join(d.words, " ") }

// token is a word or a brace and where it stands.
type token struct {
	line int
	text string
	bare bool // not in quotes
}

// tokens splits a file as Caddy does: at white space, with words in double quotes and
// comments from a # at a word's start to the line's end.
func tokens(text string) ([]token, error) { //nolint:gocognit // a scanner in one piece
	var out []token
	line := 1
	for i := 0; i < len(text); {
		switch text[i] {
		case '\n':
			line++
			i++
		case ' ', '\t', '\r':
			i++
		case '#':
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case '"':
			t := token{line: line}
			var b strings.Builder
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' && i+1 < len(text) && text[i+1] == '"' {
					i++
				}
				if text[i] == '\n' {
					line++
				}
				b.WriteByte(text[i])
			}
			if i == len(text) {
				return nil, fmt.Errorf("line %d: a quote is not closed", t.line)
			}
			i++
			t.text = b.String()
			out = append(out, t)
		default:
			start := i
			for i < len(text) && !strings.ContainsRune(" \t\r\n", rune(text[i])) {
				i++
			}
			out = append(out, token{line: line, text: text[start:i], bare: true})
		}
		if len(out) > maxTokens {
			return nil, fmt.Errorf("line %d: more than %d words", line, maxTokens)
		}
	}
	return out, nil
}

// parse reads a file's blocks.
func parse(text string) ([]block, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("%d bytes, more than %d", len(text), maxText)
	}
	list, err := tokens(text)
	if err != nil {
		return nil, err
	}
	var out []block
	for at := 0; at < len(list); {
		b := block{line: list[at].line}
		for at < len(list) && (list[at].text != "{" || !list[at].bare) {
			if list[at].bare && list[at].text == "}" {
				return nil, fmt.Errorf("line %d: } without {", list[at].line)
			}
			for k := range strings.SplitSeq(list[at].text, ",") {
				if k != "" {
					b.keys = append(b.keys, k)
				}
			}
			at++
		}
		if at == len(list) {
			return nil, fmt.Errorf("line %d: %s: want { behind the names of a server", b.line, strings.Join(b.keys, " "))
		}
		if len(b.keys) == 0 {
			return nil, fmt.Errorf("line %d: a server without a name", b.line)
		}
		if b.directives, at, err = body(list, at+1, 0); err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// body reads directives up to the brace that ends them.
func body(list []token, at, depth int) ([]directive, int, error) {
	const maxNesting = 16
	if depth > maxNesting {
		return nil, at, fmt.Errorf("line %d: blocks are more than %d deep", list[at-1].line, maxNesting)
	}
	var out []directive
	for at < len(list) {
		t := list[at]
		if t.bare && t.text == "}" {
			return out, at + 1, nil
		}
		if t.bare && t.text == "{" {
			return nil, at, fmt.Errorf("line %d: { without a word before it", t.line)
		}
		d := directive{line: t.line}
		for at < len(list) && list[at].line == t.line && (!list[at].bare || list[at].text != "{" && list[at].text != "}") {
			d.words = append(d.words, list[at].text)
			at++
		}
		if at < len(list) && list[at].bare && list[at].text == "{" && list[at].line == t.line {
			var err error
			d.block = true
			if d.body, at, err = body(list, at+1, depth+1); err != nil {
				return nil, at, err
			}
		}
		out = append(out, d)
	}
	return nil, at, fmt.Errorf("line %d: } is missing at the end", list[len(list)-1].line)
}

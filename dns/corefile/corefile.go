// Package corefile turns CoreDNS' configuration into a name server's options.
//
//	Corefile ──parse──▶ blocks ──snippets expanded──▶ Import ──▶ options, a Note per directive
//
// Invariant. Nothing is dropped without a word: for every directive, and every option
// of one, there is a Note that says what became of it. Taken is in the options or was
// so before; Elsewhere is done by something else than the options, which the note
// names; Refused is not done, and the note says why.
//
// The parser is our own, because Caddy's comes with a web server: words, quotes,
// braces and comments, all bounded.
//
// How to test. Corefiles with the notes and options that they make; fuzzing: no crash,
// and no directive without a note.
package corefile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/netctl/netctl/dns/options"
)

// Verdict is what became of a directive.
type Verdict string

// The verdicts.
const (
	Taken     Verdict = "taken"
	Elsewhere Verdict = "elsewhere"
	Refused   Verdict = "refused"
)

// Note tells of one directive, or one option of one.
type Note struct {
	Line    int
	Text    string // as it was written
	Verdict Verdict
	Why     string
	Plugin  string // that it belongs to
}

// String returns a line for people.
func (n Note) String() string {
	return fmt.Sprintf("line %d: %s: %s: %s", n.Line, n.Verdict, n.Text, n.Why)
}

// Result is what a Corefile says.
type Result struct {
	Options options.Options
	// Flags are those of 'netctl dns' that do what options do not.
	Flags []string
	Notes []Note
}

// Refused returns the notes of what is not done, but for these plugins.
func (r *Result) Refused(ignore []string) []Note {
	var out []Note
	for _, n := range r.Notes {
		if n.Verdict == Refused && !slices.Contains(ignore, n.Plugin) {
			out = append(out, n)
		}
	}
	return out
}

// Import reads a Corefile. An error says that it cannot be read at all.
func Import(text string) (*Result, error) {
	blocks, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("read the Corefile: %w", err)
	}
	im := importer{result: new(Result), snippets: map[string][]directive{}, zones: map[string]int{}}
	for i := range blocks {
		b := &blocks[i]
		if k := b.keys[0]; len(b.keys) == 1 && strings.HasPrefix(k, "(") && strings.HasSuffix(k, ")") {
			im.snippets[k[1:len(k)-1]] = b.directives
		}
	}
	for i := range blocks {
		b := &blocks[i]
		if strings.HasPrefix(b.keys[0], "(") {
			continue
		}
		im.server(b)
	}
	slices.SortStableFunc(im.result.Notes, func(a, b Note) int { return cmp.Compare(a.Line, b.Line) })
	im.result.Notes = slices.Compact(im.result.Notes) // a snippet that is imported twice
	if err := im.result.Options.Validate(); err != nil {
		return nil, fmt.Errorf("what the Corefile says is not valid here: %w", err)
	}
	return im.result, nil
}

// importer is one Import.
type importer struct {
	result   *Result
	snippets map[string][]directive
	zones    map[string]int // places in Options.Zones
	done     int            // directives

	// Of the server block at work.
	names []string // "." is the root
	plug  string
}

func (im *importer) note(d *directive, v Verdict, format string, args ...any) {
	im.result.Notes = append(im.result.Notes, Note{Line: d.line, Text: d.text(), Verdict: v, Why: fmt.Sprintf(format, args...), Plugin: im.plug})
}

// rest notes the options of a directive that nothing else was said of.
func (im *importer) rest(d *directive, why string) {
	for i := range d.body {
		im.note(&d.body[i], Refused, "%s", why)
		im.rest(&d.body[i], why)
	}
}

// flag adds a flag of netctl dns.
func (im *importer) flag(f string) {
	if !slices.Contains(im.result.Flags, f) {
		im.result.Flags = append(im.result.Flags, f)
	}
}

// server reads a server block.
func (im *importer) server(b *block) {
	im.names = nil
	for _, k := range b.keys {
		im.plug = "server"
		key := &directive{line: b.line, words: []string{k}}
		name, why := serverKey(k)
		if why != "" {
			im.note(key, Refused, "%s", why)
		}
		if name != "" && !slices.Contains(im.names, name) {
			im.names = append(im.names, name)
		}
	}
	if len(im.names) == 0 {
		for i := range b.directives {
			im.plug = b.directives[i].words[0]
			im.note(&b.directives[i], Refused, "its server is not served")
			im.rest(&b.directives[i], "its server is not served")
		}
		return
	}
	im.directives(b.directives, 0)
}

// serverKey returns the domain of a server block's key, and why the key is not all of
// it.
func serverKey(k string) (name, why string) {
	if scheme, after, ok := strings.Cut(k, "://"); ok {
		if scheme != "dns" {
			return "", "clients are served over UDP and TCP, not " + scheme
		}
		k = after
	}
	name, port, hasPort := strings.Cut(k, ":")
	if hasPort && port != "53" {
		why = "the port is set with --listen, for all domains together"
	}
	if name == "" {
		name = "."
	}
	if name != "." && !options.IsName(name) {
		return "", fmt.Sprintf("%q is no domain name; a reverse range is written as its domain", name)
	}
	return name, why
}

func (im *importer) directives(list []directive, depth int) {
	for i := range list {
		d := &list[i]
		im.plug = d.words[0]
		if im.done++; im.done > maxExpanded {
			im.note(d, Refused, "more than %d directives", maxExpanded)
			return
		}
		if d.words[0] == "import" {
			im.expand(d, depth)
			continue
		}
		im.plugin(d)
	}
}

// expand puts a snippet in the place of its import.
func (im *importer) expand(d *directive, depth int) {
	snippet, ok := []directive(nil), false
	if len(d.words) == 2 {
		snippet, ok = im.snippets[d.words[1]]
	}
	switch {
	case !ok:
		im.note(d, Refused, "no snippet of that name is in this file; put the lines of an imported file here, arguments of snippets filled in")
	case depth >= maxDepth:
		im.note(d, Refused, "snippets import each other more than %d times", maxDepth)
	default:
		im.note(d, Taken, "the snippet's lines follow")
		im.directives(snippet, depth+1)
	}
	im.rest(d, "a block behind an import has no meaning")
}

// isRoot reports whether the server block at work is the one for all names.
func (im *importer) isRoot() bool { return slices.Contains(im.names, ".") }

// plugin reads one plugin's directive.
func (im *importer) plugin(d *directive) {
	switch d.words[0] {
	case "forward":
		im.forward(d)
	case "kubernetes":
		im.kubernetes(d)
	case "cache":
		im.cache(d)
	case "hosts":
		im.hosts(d)
	case "log":
		im.log(d)
	case "rewrite":
		im.rewrite(d)
	default:
		im.simple(d)
	}
}

// simple reads the plugins that have little to say.
func (im *importer) simple(d *directive) {
	args := d.words[1:]
	switch d.words[0] {
	case "errors":
		im.note(d, Taken, "errors are always logged, each once while it lasts")
	case "health":
		im.note(d, Elsewhere, "'netctl probe' asks --probe-socket")
		im.lameduck(d)
		return
	case "ready":
		im.note(d, Elsewhere, "'netctl probe' asks --probe-socket")
	case "prometheus":
		address := "localhost:9153"
		if len(args) > 0 {
			address = args[0]
		}
		im.flag("--metrics=" + address)
		im.note(d, Elsewhere, "--metrics=%s", address)
	case "loop":
		im.note(d, Taken, "upstreams that are this server are refused, and a question that comes back ends there")
	case "reload":
		im.note(d, Taken, "the options are read again when their file changes")
	case "loadbalance":
		if len(args) > 0 && args[0] != "round_robin" {
			im.note(d, Refused, "addresses begin anywhere in their list; there is no other policy")
			break
		}
		im.note(d, Taken, "addresses begin anywhere in their list")
	case "bufsize":
		if len(args) > 0 && args[0] != "1232" {
			im.note(d, Refused, "answers over UDP have 1232 bytes at most")
			break
		}
		im.note(d, Taken, "answers over UDP have 1232 bytes at most")
	case "any":
		im.note(d, Taken, "ANY is answered with HINFO (RFC 8482)")
	default:
		im.note(d, Refused, "there is nothing like it here")
	}
	im.rest(d, "there is nothing like it here")
}

func (im *importer) lameduck(d *directive) {
	for i := range d.body {
		o := &d.body[i]
		if o.words[0] == "lameduck" && len(o.words) == 2 {
			im.flag("--drain=" + o.words[1])
			im.note(o, Elsewhere, "--drain=%s", o.words[1])
			im.rest(o, "there is nothing like it here")
			continue
		}
		im.note(o, Refused, "there is nothing like it here")
		im.rest(o, "there is nothing like it here")
	}
}

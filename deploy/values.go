package deploy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// Values are options of the chart: maps, lists, strings, numbers and truth
// values, as YAML has them.
type Values map[string]any

// ParseValues reads a file of values; name is for messages.
func ParseValues(data []byte, name string) (Values, error) {
	var v Values
	if err := yaml.UnmarshalStrict(data, &v); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

// Overlay returns v with over laid on it, as Helm does: maps are merged,
// everything else is replaced; a null stays and takes away what is there when
// the chart is rendered. Neither is changed.
func (v Values) Overlay(over Values) Values { return merge(v, over) }

func merge(base, over map[string]any) map[string]any {
	out := maps.Clone(base)
	if out == nil {
		out = map[string]any{}
	}
	for k, value := range over {
		below, isMap := value.(map[string]any)
		here, wasMap := out[k].(map[string]any)
		if isMap && wasMap {
			value = merge(here, below)
		}
		out[k] = value
	}
	return out
}

// withoutNull returns m without the keys that null has taken away.
func withoutNull(m map[string]any) map[string]any {
	out := map[string]any{}
	for k, value := range m {
		if below, ok := value.(map[string]any); ok {
			value = withoutNull(below)
		}
		if value != nil {
			out[k] = value
		}
	}
	return out
}

// Set lays one assignment over v, written as for Helm's --set: KEY=VALUE, where
// dots lead into maps, a value is a number, true, false, null or else a string,
// and {a,b} is a list. A backslash takes the meaning from a dot or comma. Several
// assignments may stand in one text, with commas between.
func (v Values) Set(text string) (Values, error) {
	for _, assignment := range cut(text, ',') {
		key, value, ok := strings.Cut(assignment, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q: write KEY=VALUE, such as config.mtu=1400", assignment)
		}
		if strings.ContainsAny(key, "[]") {
			return nil, fmt.Errorf("%q: elements of lists are set with a file of values", key)
		}
		path := cut(key, '.')
		nested := scalar(value)
		for _, name := range slices.Backward(path) {
			nested = map[string]any{unescape(name): nested}
		}
		v = v.Overlay(nested.(map[string]any))
	}
	return v, nil
}

// scalar reads the right side of an assignment.
func scalar(text string) any {
	if inner, ok := strings.CutPrefix(text, "{"); ok && strings.HasSuffix(inner, "}") {
		list := []any{}
		if inner = strings.TrimSuffix(inner, "}"); inner != "" {
			for _, s := range cut(inner, ',') {
				list = append(list, scalar(s))
			}
		}
		return list
	}
	switch text {
	case "true":
		return true
	case "false":
		return false
	case "null":
		return nil
	case "0":
		return int64(0)
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && text[0] != '0' {
		return n
	}
	return unescape(text)
}

// unescape removes the backslashes that cut has left.
func unescape(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+1 < len(text) {
			i++
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// cut splits text at sep, but not behind a backslash and not inside of braces.
// Backslashes stay.
func cut(text string, sep byte) []string {
	var out []string
	var part strings.Builder
	depth := 0
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && i+1 < len(text):
			part.WriteByte(c)
			i++
			part.WriteByte(text[i])
			continue
		case c == '{':
			depth++
		case c == '}':
			depth--
		case c == sep && depth == 0:
			out = append(out, part.String())
			part.Reset()
			continue
		}
		part.WriteByte(c)
	}
	return append(out, part.String())
}

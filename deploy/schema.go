package deploy

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
)

// ErrValue marks an option that the chart does not have, or a value that it
// cannot have.
var ErrValue = errors.New("wrong option")

//go:embed chart/values.schema.json
var schemaFile []byte

// schema is the part of JSON Schema that values.schema.json uses. Helm reads the
// same file; a word that is not here is refused, so that what this package does
// not check cannot get into it.
type schema struct {
	Schema               string            `json:"$schema"`
	Type                 string            `json:"type"`
	Properties           map[string]schema `json:"properties"`
	AdditionalProperties *bool             `json:"additionalProperties"`
	Required             []string          `json:"required"`
	Items                *schema           `json:"items"`
	Enum                 []string          `json:"enum"`
	Pattern              string            `json:"pattern"`
	Minimum              *int64            `json:"minimum"`
	Maximum              *int64            `json:"maximum"`
}

// check tells what is wrong with the values of an installation.
func check(v map[string]any) error {
	dec := json.NewDecoder(strings.NewReader(string(schemaFile)))
	dec.DisallowUnknownFields()
	var s schema
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("read the chart: values.schema.json: %w", err)
	}
	return errors.Join(s.check("", v)...)
}

// check returns what is wrong with v, which is called name.
func (s schema) check(name string, v any) []error {
	wrong := func(format string, args ...any) []error {
		return []error{fmt.Errorf("%w: %s: "+format, append([]any{ErrValue, name}, args...)...)}
	}
	switch v := v.(type) {
	case map[string]any:
		if s.Type != "object" {
			return wrong("must be of type %s", s.Type)
		}
		return s.checkObject(name, v)
	case []any:
		if s.Type != "array" {
			return wrong("must be of type %s", s.Type)
		}
		var errs []error
		for i, element := range v {
			errs = append(errs, s.Items.check(fmt.Sprintf("%s[%d]", name, i), element)...)
		}
		return errs
	case string:
		switch {
		case s.Type != "string":
			return wrong("%q must be of type %s", v, s.Type)
		case len(s.Enum) > 0 && !slices.Contains(s.Enum, v):
			return wrong("%q must be one of %s", v, strings.Join(s.Enum, ", "))
		case !regexp.MustCompile(s.Pattern).MatchString(v):
			return wrong("%q must match %s", v, s.Pattern)
		}
		return nil
	case bool:
		if s.Type == "string" {
			return wrong("%t must be of type string; YAML takes on, off, yes and no for truth values, so write quotes around them", v)
		}
	}
	if _, ok := v.(bool); s.Type == "boolean" {
		if !ok {
			return wrong("%v must be true or false", v)
		}
		return nil
	}
	n, ok := integer(v)
	switch {
	case !ok || s.Type != "integer":
		return wrong("%v must be of type %s", v, s.Type)
	case s.Minimum != nil && n < *s.Minimum:
		return wrong("%d is less than %d", n, *s.Minimum)
	case s.Maximum != nil && n > *s.Maximum:
		return wrong("%d is more than %d", n, *s.Maximum)
	}
	return nil
}

func (s schema) checkObject(name string, v map[string]any) []error {
	prefix := ""
	if name != "" {
		prefix = name + "."
	}
	var errs []error
	for _, k := range s.Required {
		if _, ok := v[k]; !ok {
			errs = append(errs, fmt.Errorf("%w: %s%s: must have a value", ErrValue, prefix, k))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(v)) {
		below, ok := s.Properties[k]
		switch {
		case ok:
			errs = append(errs, below.check(prefix+k, v[k])...)
		case s.AdditionalProperties != nil && !*s.AdditionalProperties:
			errs = append(errs, fmt.Errorf("%w: %s%s: there is no such option, but %s", ErrValue, prefix, k,
				strings.Join(slices.Sorted(maps.Keys(s.Properties)), ", ")))
		}
	}
	return errs
}

// integer reads a whole number as YAML, JSON and --set have them.
func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case float64:
		return int64(v), v == math.Trunc(v)
	default:
		return 0, false
	}
}

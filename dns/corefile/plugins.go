package corefile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netctl/netctl/dns/options"
)

// number reads an option's only argument.
func number(d *directive) (uint32, bool) {
	if len(d.words) != 2 {
		return 0, false
	}
	n, err := strconv.ParseUint(d.words[1], 10, 31)
	return uint32(n), err == nil
}

// forward reads where names are asked: those of the server block, or of the domain
// that the directive names.
func (im *importer) forward(d *directive) {
	if len(d.words) < 3 {
		im.note(d, Refused, "want a domain and upstreams")
		im.rest(d, "its forward is not understood")
		return
	}
	tcp, server, policy := false, "", options.Policy("")
	var except []string
	for i := range d.body {
		o := &d.body[i]
		switch o.words[0] {
		case "force_tcp":
			tcp = true
			im.note(o, Taken, "tcp:// before the upstreams")
		case "tls_servername":
			if len(o.words) == 2 && options.IsName(o.words[1]) {
				server = o.words[1]
				im.note(o, Taken, "#%s behind the upstreams", server)
			} else {
				im.note(o, Refused, "want one name")
			}
		case "policy":
			if p := options.Policy(strings.Join(o.words[1:], " ")); slices.Contains([]options.Policy{options.Random, options.RoundRobin, options.Sequential}, p) {
				policy = p
				im.note(o, Taken, "policy: %s", p)
			} else {
				im.note(o, Refused, "want random, round_robin or sequential")
			}
		case "max_concurrent":
			n, ok := number(o)
			switch {
			case !ok || !im.isRoot() || d.words[1] != ".":
				im.note(o, Refused, "there is one bound, of all upstreams together")
			default:
				im.result.Options.MaxConcurrent = int(n)
				im.note(o, Taken, "maxConcurrent: %d", n)
			}
		case "except":
			except = append(except, im.except(o)...)
		case "prefer_udp":
			im.note(o, Taken, "UDP is asked first always")
		case "expire", "max_fails", "health_check", "failfast_all_unhealthy_upstreams", "next", "failover":
			im.note(o, Refused, "an upstream that fails twice is asked last for five seconds, what one refuses or fails the next one is asked, and a slow one gets company; none of that is set")
		default:
			im.note(o, Refused, "there is nothing like it here")
		}
		im.rest(o, "there is nothing like it here")
	}
	if policy == "" {
		policy = options.Random // CoreDNS' own
	}
	im.upstreams(d, tcp, server, policy, except)
}

// except reads domains that are not asked.
func (im *importer) except(o *directive) []string {
	var out []string
	for _, n := range o.words[1:] {
		if !options.IsName(n) {
			im.note(o, Refused, "%q is no domain name", n)
			return nil
		}
		out = append(out, n)
	}
	im.note(o, Taken, "zones without upstreams: their names are refused")
	return out
}

// upstreams adds what a forward directive names.
func (im *importer) upstreams(d *directive, tcp bool, server string, policy options.Policy, except []string) { //nolint:gocognit // what does not go together, in a row
	var list []options.Upstream
	resolvers := false
	for _, w := range d.words[2:] {
		if strings.HasPrefix(w, "/") {
			if w != "/etc/resolv.conf" {
				im.flag("--resolv-conf=" + w)
			}
			resolvers = true
			continue
		}
		if after, ok := strings.CutPrefix(w, "dns://"); ok {
			w = after
		}
		if server != "" && strings.HasPrefix(w, "tls://") {
			w += "#" + server
		}
		if tcp && !strings.Contains(w, "://") {
			w = "tcp://" + w
		}
		u, err := options.ParseUpstream(w)
		if err != nil {
			im.note(d, Refused, "%v", err)
			return
		}
		list = append(list, u)
	}
	names := im.names
	if d.words[1] != "." {
		if !options.IsName(d.words[1]) {
			im.note(d, Refused, "%q is no domain name", d.words[1])
			return
		}
		names = []string{d.words[1]}
	}
	root := slices.Contains(names, ".")
	switch {
	case resolvers && len(list) > 0:
		im.note(d, Refused, "the resolvers of a file and upstreams are not asked together: name all upstreams")
		return
	case resolvers && !root:
		im.note(d, Refused, "the resolvers of a file are asked for all other names, not for a domain: name its upstreams")
		return
	case resolvers && tcp:
		im.note(d, Refused, "the resolvers of a file are asked over UDP first")
		return
	}
	o := &im.result.Options
	for _, n := range names {
		if n != "." {
			im.zone(options.Zone{Name: n, Upstreams: list, Policy: policy})
			continue
		}
		o.Policy, o.Upstreams = policy, list
	}
	for _, n := range except {
		im.zone(options.Zone{Name: n, Upstreams: []options.Upstream{}})
	}
	im.note(d, Taken, "upstreams of %s", strings.Join(names, ", "))
}

// zone adds a zone, or says its upstreams anew.
func (im *importer) zone(z options.Zone) {
	o, key := &im.result.Options, strings.ToLower(strings.TrimSuffix(z.Name, "."))
	if i, ok := im.zones[key]; ok {
		o.Zones[i] = z
		return
	}
	im.zones[key] = len(o.Zones)
	o.Zones = append(o.Zones, z)
}

// kubernetes reads the cluster's own names.
func (im *importer) kubernetes(d *directive) {
	domains := d.words[1:]
	if len(domains) == 0 {
		domains = im.names
	}
	o := &im.result.Options
	first := ""
	for _, n := range domains {
		switch low := strings.TrimSuffix(strings.ToLower(n), "."); {
		case strings.HasSuffix(low, "in-addr.arpa") || strings.HasSuffix(low, "ip6.arpa"):
		case first == "":
			first = low
		default:
			im.note(d, Refused, "there is one domain of the cluster's names, %s", first)
			im.rest(d, "its domains are not understood")
			return
		}
	}
	if first != "" && first != "cluster.local" {
		im.flag("--cluster-domain=" + first)
	}
	im.note(d, Taken, "the cluster's names, and the reverse names of its addresses")
	for i := range d.body {
		x := &d.body[i]
		switch x.words[0] {
		case "pods":
			mode := options.Pods(strings.Join(x.words[1:], " "))
			if slices.Contains([]options.Pods{options.PodsInsecure, options.PodsVerified, options.PodsDisabled}, mode) {
				o.Pods = mode
				im.note(x, Taken, "pods: %s", mode)
			} else {
				im.note(x, Refused, "want insecure, verified or disabled")
			}
		case "ttl":
			if n, ok := number(x); ok && n > 0 && n <= 3600 {
				o.TTL = n
				im.note(x, Taken, "ttl: %d", n)
			} else {
				im.note(x, Refused, "want 1 to 3600 seconds")
			}
		case "fallthrough":
			if slices.ContainsFunc(x.words[1:], func(n string) bool { return !strings.HasSuffix(strings.TrimSuffix(n, "."), ".arpa") }) || len(x.words) == 1 {
				im.note(x, Refused, "what the cluster's domain does not have does not exist; reverse names outside the cluster's ranges are asked upstream")
			} else {
				im.note(x, Taken, "reverse names outside the cluster's ranges are asked upstream")
			}
		case "endpoint", "tls", "kubeconfig":
			im.note(x, Elsewhere, "--kubeconfig or --api-server")
		default:
			im.note(x, Refused, "there is nothing like it here")
		}
		im.rest(x, "there is nothing like it here")
	}
}

// cache reads how long answers are kept.
func (im *importer) cache(d *directive) {
	c := &im.result.Options.Cache
	args := d.words[1:]
	n, err := uint64(0), error(nil)
	if len(args) > 0 {
		n, err = strconv.ParseUint(args[0], 10, 31)
	}
	switch {
	case len(args) == 0:
		im.note(d, Taken, "answers are kept for their own time")
	case err != nil || n == 0 || len(args) > 1:
		im.note(d, Refused, "answers of all domains outside are kept alike, those of the cluster never")
	case !im.isRoot() && c.MaxTTL != uint32(n):
		im.note(d, Refused, "answers of all domains outside are kept alike")
	default:
		c.MaxTTL, c.MaxNegativeTTL = uint32(n), uint32(n)
		im.note(d, Taken, "cache: maxTTL and maxNegativeTTL are %d", n)
	}
	for i := range d.body {
		x := &d.body[i]
		im.cacheOption(x, c)
		im.rest(x, "there is nothing like it here")
	}
}

func (im *importer) cacheOption(x *directive, c *options.Cache) {
	switch x.words[0] {
	case "success", "denial":
		ttl := 0
		if len(x.words) > 2 {
			ttl, _ = strconv.Atoi(x.words[2]) // else 0, which is refused below
		}
		if len(x.words) != 3 || x.words[1] != "9984" || ttl <= 0 {
			im.note(x, Refused, "10 000 answers are kept; want 9984 and a time in seconds")
			return
		}
		if x.words[0] == "success" {
			c.MaxTTL = uint32(ttl)
		} else {
			c.MaxNegativeTTL = uint32(ttl)
		}
		im.note(x, Taken, "for %d seconds at most", ttl)
	case "disable":
		if len(x.words) == 3 && (x.words[1] == "success" || x.words[1] == "denial") {
			im.note(x, Taken, "the cluster's names are never kept; if %s is another domain, it is", x.words[2])
			return
		}
		im.note(x, Refused, "want success or denial and the cluster's domain")
	case "prefetch":
		im.note(x, Taken, "names that were asked three times are asked for again in the last tenth of their time, which is not set")
	case "serve_stale":
		d := options.Duration(time.Hour)
		if len(x.words) > 1 {
			v, err := time.ParseDuration(x.words[1])
			if err != nil || v < 0 {
				im.note(x, Refused, "want a duration")
				return
			}
			d = options.Duration(v)
		}
		if d == 0 { // CoreDNS: for ever
			d = options.Duration(24 * time.Hour)
		}
		c.ServeStale = d
		im.note(x, Taken, "serveStale: %s, when upstreams do not answer within 1.8 seconds", time.Duration(d))
	default:
		im.note(x, Refused, "there is nothing like it here")
	}
}

// hosts reads names of the server's own.
func (im *importer) hosts(d *directive) {
	if len(d.words) > 1 {
		im.note(d, Refused, "names are not read from a file: put its lines into the block, for all domains")
	} else {
		im.note(d, Taken, "names that are not in it are looked for elsewhere, be there a fallthrough or not")
	}
	for i := range d.body {
		x := &d.body[i]
		a, err := netip.ParseAddr(x.words[0])
		switch {
		case err == nil && len(x.words) > 1 && !slices.ContainsFunc(x.words[1:], func(n string) bool { return !options.IsName(n) }) && a.Zone() == "":
			im.result.Options.Hosts = append(im.result.Options.Hosts, options.Host{Address: a, Names: x.words[1:]})
			im.note(x, Taken, "a host")
		case x.words[0] == "fallthrough" && len(x.words) == 1:
			im.note(x, Taken, "names that are not in it are looked for elsewhere")
		default:
			im.note(x, Refused, "there is nothing like it here: hosts have the cluster's TTL and reverse names, and change with the options")
		}
		im.rest(x, "there is nothing like it here")
	}
}

// log reads which questions are logged.
func (im *importer) log(d *directive) {
	if len(d.words) > 1 && (len(d.words) != 2 || d.words[1] != ".") || !im.isRoot() {
		im.note(d, Refused, "questions of all domains are logged alike, in one format")
		im.rest(d, "its log is not taken over")
		return
	}
	level, order := options.LogNone, []options.Log{options.LogNone, options.LogErrors, options.LogDenial, options.LogAll}
	for i := range d.body {
		x := &d.body[i]
		if x.words[0] != "class" {
			im.note(x, Refused, "there is nothing like it here")
			im.rest(x, "there is nothing like it here")
			continue
		}
		for _, class := range x.words[1:] {
			l, ok := map[string]options.Log{"all": options.LogAll, "denial": options.LogDenial, "error": options.LogErrors}[class]
			if !ok {
				im.note(x, Refused, "class %s: want all, denial or error", class)
				continue
			}
			if slices.Index(order, l) > slices.Index(order, level) {
				level = l
			}
		}
		im.note(x, Taken, "log: %s", level)
		im.rest(x, "there is nothing like it here")
	}
	if len(d.body) == 0 {
		level = options.LogAll
	}
	im.result.Options.Log = level
	im.note(d, Taken, "log: %s", level)
}

// rewrite reads names that stand for others.
func (im *importer) rewrite(d *directive) {
	w := d.words[1:]
	if len(w) > 0 && (w[0] == "stop" || w[0] == "continue") {
		if w[0] == "continue" {
			im.note(d, Refused, "the first rewrite that fits is the only one")
			im.rest(d, "its rewrite is not understood")
			return
		}
		w = w[1:]
	}
	suffix := false
	if len(w) > 1 && w[0] == "name" && (w[1] == "exact" || w[1] == "suffix") {
		suffix = w[1] == "suffix"
		w = append([]string{"name"}, w[2:]...)
	}
	if len(w) == 5 && w[3] == "answer" && w[4] == "auto" {
		w = w[:3]
	}
	if len(w) != 3 || w[0] != "name" || !options.IsName(strings.TrimPrefix(w[1], ".")) || !options.IsName(strings.TrimPrefix(w[2], ".")) {
		im.note(d, Refused, "want a name and the name that stands for it: 'rewrite name [exact|suffix] FROM TO'")
		im.rest(d, "its rewrite is not understood")
		return
	}
	r := options.Rewrite{Name: strings.Trim(w[1], "."), To: strings.Trim(w[2], "."), Suffix: suffix}
	im.result.Options.Rewrites = append(im.result.Options.Rewrites, r)
	im.note(d, Taken, "answers come under the name that was asked")
	im.rest(d, "there is nothing like it here")
}

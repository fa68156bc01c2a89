package web

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// The page loads only its own files; media and playlists may come from any box. blob: is what Media Source
// Extensions play from.
const contentPolicy = "default-src 'self'; media-src * blob:; connect-src *; worker-src blob: 'self'; " +
	"object-src 'none'; base-uri 'none'; form-action 'none'"

// hashed matches the names that Vite gives to files whose content is part of their name.
var hashed = regexp.MustCompile(`^assets/.+-[A-Za-z0-9_-]{8}\.[a-z0-9]+$`)

// Types are fixed here: the ones that package mime knows depend on the machine.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".svg":  "image/svg+xml",
}

// Handler serves the page at "/" and its assets below "/assets/", to GET and HEAD: files with a hash in
// their name are immutable, the rest is revalidated by ETag; gzip goes to those who accept it. Every other
// path is 404, every other method 405. It may be called concurrently.
func Handler() http.Handler {
	return newHandler(Files())
}

// page is one file in the forms in which it is sent.
type page struct {
	contentType  string
	cacheControl string
	plain        variant
	gzipped      variant // content nil: none
}

type variant struct {
	content []byte
	etag    string
}

// newHandler reads all of files, which must be embedded ones, so that requests touch only memory.
func newHandler(files fs.FS) http.Handler {
	pages := make(map[string]page)
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		contentType := contentTypes[path.Ext(name)]
		if err != nil || entry.IsDir() || contentType == "" {
			return err
		}
		content, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		p := page{contentType: contentType, cacheControl: "no-cache", plain: newVariant(content)}
		if hashed.MatchString(name) {
			p.cacheControl = "public, max-age=31536000, immutable"
		}
		if packed, err := fs.ReadFile(files, name+".gz"); err == nil {
			p.gzipped = newVariant(packed)
		}
		pages["/"+name] = p
		return nil
	})
	if err != nil {
		panic(err) // embedded files cannot fail to be read
	}
	pages["/"] = pages["/index.html"]

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := pages[r.URL.Path]
		switch {
		case !ok:
			http.NotFound(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed: use GET", http.StatusMethodNotAllowed)
		default:
			p.serve(w, r)
		}
	})
}

func newVariant(content []byte) variant {
	sum := sha256.Sum256(content)
	return variant{content: content, etag: strconv.Quote(hex.EncodeToString(sum[:8]))}
}

func (p page) serve(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Type", p.contentType)
	header.Set("Cache-Control", p.cacheControl)
	header.Set("Content-Security-Policy", contentPolicy)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	v := p.plain
	if p.gzipped.content != nil {
		header.Set("Vary", "Accept-Encoding")
		if acceptsGzip(r.Header.Values("Accept-Encoding")) {
			v = p.gzipped
			header.Set("Content-Encoding", "gzip")
		}
	}
	header.Set("ETag", v.etag)
	if strings.Contains(r.Header.Get("If-None-Match"), v.etag) {
		header.Del("Content-Type")
		header.Del("Content-Encoding")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Length", strconv.Itoa(len(v.content)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(v.content) // a viewer who left needs no page
	}
}

// acceptsGzip reads Accept-Encoding (RFC 9110 section 12.5.3) as far as gzip is concerned.
func acceptsGzip(values []string) bool {
	for coding := range strings.SplitSeq(strings.Join(values, ","), ",") {
		name, parameters, _ := strings.Cut(coding, ";")
		if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
			continue
		}
		weight, found := strings.CutPrefix(strings.ReplaceAll(parameters, " ", ""), "q=")
		if !found {
			return true
		}
		q, err := strconv.ParseFloat(weight, 64)
		return err == nil && q > 0
	}
	return false
}

package state

import (
	"fmt"
	"reflect"
	"time"
	"unsafe"

	"github.com/alicebob/miniredis/v2"
)

// innards reaches the tables inside a miniredis. Its public methods each take its lock, and three
// things that a server running for months needs cannot be built from them:
//   - a snapshot of one moment: a BLMOVE between two calls would show an element in no list;
//   - a clock that costs what expires: FastForward sorts all keys, ten times a second;
//   - forgetting: it keeps a version number of every key that ever was, for WATCH, and a
//     delivery on a box is a key.
//
// reach checks the name and shape of every field that is used here, so that a changed miniredis is
// an error at the start (and in the tests), and never damage.
type innards struct {
	server *miniredis.Miniredis // its lock guards everything below
	dbs    *map[int]*miniredis.RedisDB
	tables map[*miniredis.RedisDB]tables
}

// tables point to the fields of one database, because miniredis replaces the maps.
type tables struct {
	keys      *map[string]string // type of each key
	strings   *map[string]string
	hashes    *map[string]map[string]string
	lists     *map[string][]string
	sets      *map[string]map[string]struct{}
	zsets     *map[string]map[string]float64
	ttls      *map[string]time.Duration
	fieldTTLs *map[string]map[string]time.Duration
	used      *map[string]time.Time // of OBJECT IDLETIME
	versions  *map[string]uint      // of WATCH
}

func reach(server *miniredis.Miniredis) (*innards, error) {
	dbs, err := field[map[int]*miniredis.RedisDB](reflect.ValueOf(server).Elem(), "dbs")
	if err != nil {
		return nil, err
	}
	in := &innards{server: server, dbs: dbs, tables: map[*miniredis.RedisDB]tables{}}
	probe := server.DB(0)
	t, err := tablesOf(probe)
	if err != nil {
		return nil, err
	}
	in.tables[probe] = t
	return in, nil
}

func tablesOf(db *miniredis.RedisDB) (t tables, err error) {
	v := reflect.ValueOf(db).Elem()
	return tables{
		keys:      mustField[map[string]string](v, "keys", &err),
		strings:   mustField[map[string]string](v, "stringKeys", &err),
		hashes:    mustField[map[string]map[string]string](v, "hashKeys", &err),
		lists:     mustField[map[string][]string](v, "listKeys", &err),
		sets:      mustField[map[string]map[string]struct{}](v, "setKeys", &err),
		zsets:     mustField[map[string]map[string]float64](v, "sortedsetKeys", &err),
		ttls:      mustField[map[string]time.Duration](v, "ttl", &err),
		fieldTTLs: mustField[map[string]map[string]time.Duration](v, "hashTTLs", &err),
		used:      mustField[map[string]time.Time](v, "lru", &err),
		versions:  mustField[map[string]uint](v, "keyVersion", &err),
	}, err
}

func mustField[T any](v reflect.Value, name string, failure *error) *T {
	p, err := field[T](v, name)
	if err != nil && *failure == nil {
		*failure = err
	}
	return p
}

// field returns a pointer to an unexported field, as a T of the same shape.
func field[T any](v reflect.Value, name string) (*T, error) {
	f := v.FieldByName(name)
	if !f.IsValid() || !sameShape(f.Type(), reflect.TypeFor[T]()) {
		return nil, fmt.Errorf("the embedded state does not fit this version of miniredis: field %s.%s is not a %s", v.Type(), name, reflect.TypeFor[T]())
	}
	// Types that differ in names only have the same layout: rule 1 of package unsafe.
	return (*T)(unsafe.Pointer(f.UnsafeAddr())), nil
}

func sameShape(a, b reflect.Type) bool {
	if a == b {
		return true
	}
	if a.Kind() != b.Kind() {
		return false
	}
	switch a.Kind() {
	case reflect.Map:
		return a.Key() == b.Key() && sameShape(a.Elem(), b.Elem())
	case reflect.Slice:
		return sameShape(a.Elem(), b.Elem())
	}
	return false
}

// each calls f with every database. The lock is held.
func (in *innards) each(f func(db int, t tables)) {
	for n, db := range *in.dbs {
		t, ok := in.tables[db]
		if !ok {
			t, _ = tablesOf(db) // the shapes were checked by reach
			in.tables[db] = t
		}
		f(n, t)
	}
}

// pass lets time go by: TTLs become shorter, and what has none left is deleted.
func (in *innards) pass(now time.Time, passed time.Duration) {
	in.server.SetTime(now)
	in.server.Lock()
	expired := false
	in.each(func(_ int, t tables) {
		expired = shorten(*t.ttls, *t.keys, passed) || expired
		for _, fields := range *t.fieldTTLs {
			for field, ttl := range fields {
				fields[field] = ttl - passed
				expired = expired || ttl <= passed
			}
		}
	})
	in.server.Unlock()
	if expired {
		in.server.FastForward(0) // deletes what has no time left
	}
}

// shorten takes passed from all ttls and reports whether a key has none left.
func shorten(ttls map[string]time.Duration, keys map[string]string, passed time.Duration) (expired bool) {
	for key, ttl := range ttls {
		ttl -= passed
		ttls[key] = ttl
		if ttl > 0 {
			continue
		}
		if _, exists := keys[key]; exists {
			expired = true
		} else {
			delete(ttls, key)
		}
	}
	return expired
}

// forgetSlack is how many keys that are gone are remembered beyond as many as there are.
const forgetSlack = 1024

// forget drops what is remembered of keys that are gone, when that has become much. An open
// WATCH of such a key may then miss that it came back in between; nothing here uses WATCH for that
// long.
func (in *innards) forget() {
	in.server.Lock()
	defer in.server.Unlock()
	in.each(func(_ int, t tables) {
		prune(t.versions, *t.keys)
		prune(t.used, *t.keys)
	})
}

func prune[V any](m *map[string]V, keys map[string]string) {
	if len(*m) <= 2*len(keys)+forgetSlack {
		return
	}
	kept := make(map[string]V, len(keys)) // a map that shrinks keeps its memory
	for key, value := range *m {
		if _, exists := keys[key]; exists {
			kept[key] = value
		}
	}
	*m = kept
}

// dump appends a snapshot of everything, at one moment.
func (in *innards) dump(buf []byte, clock *clock) []byte {
	in.server.Lock()
	defer in.server.Unlock()
	now := clock.moved()
	w := newImageWriter(buf, now, clock.wall())
	in.each(func(db int, t tables) {
		for key, kind := range *t.keys {
			var expires time.Time
			if ttl, ok := (*t.ttls)[key]; ok {
				expires = now.Add(ttl)
			}
			switch kind {
			case "string":
				w.key(kindString, db, key, expires, 1)
				w.text((*t.strings)[key])
			case "hash":
				hash := (*t.hashes)[key]
				w.key(kindHash, db, key, expires, len(hash))
				for field, value := range hash {
					w.text(field)
					w.text(value)
				}
			case "list":
				list := (*t.lists)[key]
				w.key(kindList, db, key, expires, len(list))
				for _, element := range list {
					w.text(element)
				}
			case "set":
				set := (*t.sets)[key]
				w.key(kindSet, db, key, expires, len(set))
				for member := range set {
					w.text(member)
				}
			case "zset":
				zset := (*t.zsets)[key]
				w.key(kindSortedSet, db, key, expires, len(zset))
				for member, score := range zset {
					w.score(score)
					w.text(member)
				}
			}
		}
	})
	return w.finish()
}

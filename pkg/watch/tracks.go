package watch

import (
	"net/url"

	"dandelion/pkg/playlist"
)

// chosen are the media playlists that are played: the first variant and the default rendition of
// its audio group (the first where none is the default).
func (p *Player) chosen(base *url.URL, multi *playlist.Multivariant) ([]*track, error) {
	uris := choose(multi)
	if len(uris) == 0 {
		return nil, errNoVariant
	}
	var tracks []*track
	for i, uri := range uris {
		u, err := resolve(base, uri)
		if err != nil {
			return nil, err
		}
		tracks = append(tracks, newTrack(p, i, u))
	}
	return tracks, nil
}

func choose(multi *playlist.Multivariant) (uris []string) {
	group := ""
	for _, t := range multi.Tags {
		if t.Name == "EXT-X-STREAM-INF" {
			uris = append(uris, t.URI)
			group, _ = t.Attrs.Get("AUDIO")
			break
		}
	}
	if len(uris) == 0 || group == "" {
		return uris
	}
	audio := ""
	for _, t := range multi.Tags {
		id, _ := t.Attrs.Get("GROUP-ID")
		kind, _ := t.Attrs.Get("TYPE")
		usual, _ := t.Attrs.Get("DEFAULT")
		if t.Name != "EXT-X-MEDIA" || kind != "AUDIO" || id != group {
			continue
		}
		if usual == "YES" {
			audio = t.URI
			break
		}
		if audio == "" {
			audio = t.URI
		}
	}
	if audio != "" && audio != uris[0] {
		uris = append(uris, audio)
	}
	return uris
}

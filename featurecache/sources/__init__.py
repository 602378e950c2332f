"""Where samples come from: images in folders, webdataset tars, texts, tables, the web, and data made up here."""

from featurecache.registry import Registry
from featurecache.sources.base import Source
from featurecache.sources.decode import decode
from featurecache.sources.digits import Digits
from featurecache.sources.image_folder import ImageFolder
from featurecache.sources.limited import Limited
from featurecache.sources.parquet_files import ParquetTable
from featurecache.sources.remote_tars import RemoteTars
from featurecache.sources.resolve import is_remote, location, open_data
from featurecache.sources.synthetic import SyntheticImages, SyntheticTexts
from featurecache.sources.tabular import Tabular
from featurecache.sources.tar_shards import TarShards
from featurecache.sources.text_files import TextFiles

__all__ = [
    "SOURCES",
    "Digits",
    "ImageFolder",
    "Limited",
    "ParquetTable",
    "RemoteTars",
    "Source",
    "SyntheticImages",
    "SyntheticTexts",
    "Tabular",
    "TarShards",
    "TextFiles",
    "decode",
    "is_remote",
    "location",
    "open_data",
]

SOURCES = Registry[Source](
    "source",
    image_folder="featurecache.sources.image_folder:ImageFolder",
    tar_shards="featurecache.sources.tar_shards:TarShards",
    remote_tars="featurecache.sources.remote_tars:RemoteTars",
    text_files="featurecache.sources.text_files:TextFiles",
    tabular="featurecache.sources.tabular:Tabular",
    digits="featurecache.sources.digits:Digits",
    synthetic="featurecache.sources.synthetic:SyntheticImages",
    synthetic_text="featurecache.sources.synthetic:SyntheticTexts",
)
